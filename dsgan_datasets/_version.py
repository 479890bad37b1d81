"""The version of the package, written once."""

__version__ = "0.2.0.dev0"
"""The version, such as "0.2.0"."""
