"""everline: online, continual visual inspection on Ray."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("everline")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
