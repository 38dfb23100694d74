"""The laws of a release, pure: no I/O, no clock, no random. Import the module you need."""
