"""graylb: gray releases at the proxy. Loads nothing compiled."""

__version__ = "0.1.0"
