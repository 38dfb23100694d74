"""The fault suite: what graylb and its peers do when parts around them, or of them, break."""
