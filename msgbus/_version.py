"""The version, read by the build and by `msgbus version`."""

__version__ = "0.1.0"
