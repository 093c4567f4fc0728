"""Every error that everline raises on purpose.

    EverlineError
    ├── ConfigError            a setting or parameter is unknown or out of range
    │   └── UnknownName        ... and these are the nearest valid ones
    ├── ImageError             bytes that are not an image we accept
    ├── DataError              a folder or dataset that is not what was asked for
    ├── WeightsError           backbone weights that cannot be had or do not fit
    ├── StateError             a detector state that does not belong to this detector
    ├── NotLearned             a detector was asked to score before it could
    ├── StoreError             the log or its files
    │   ├── Corrupt            bytes on disk do not match their checksum
    │   ├── SecondWriter       another process writes this line's log
    │   ├── NoSpace            the disk is full; nothing that was acknowledged is lost
    │   └── StoreDown          a store on S3 does not answer: send the same thing again
    ├── UnknownLine            no such line in this fleet
    ├── UnknownImage           no image of that id in the line's log
    ├── LineDown               the line's process does not answer (yet): send the same thing again
    │   └── LineStopped        ... it kept dying, and stays down until somebody has mended it
    ├── Busy                   as many images wait at the line as may: wait, then send the same image again
    │   ├── Dropped            ... and the line drops what is more: this image was not recorded
    │   └── ServerBusy         ... at the server, which has more to decode than it takes
    ├── UnknownVersion         no such version of this line
    ├── TrackingError          MLflow could not be reached or answered with an error
    └── PortInUse              the HTTP port is taken

They hold one message and pickle as they are, so they may cross processes.
"""

import difflib
from collections.abc import Iterable


class EverlineError(Exception):
    """Base of all errors that everline raises on purpose; `str(error)` is fit for a user."""


class ConfigError(EverlineError):
    """A setting or parameter is unknown, of the wrong type or out of range."""


class UnknownName(ConfigError):
    """A name that is not in a known set."""

    @classmethod
    def among(cls, who: str, what: str, name: str, known: Iterable[str]) -> "UnknownName":
        """Build the message: who was asked, what `name` should have been, the nearest `known` names."""
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        return cls(f"{who}: unknown {what} {name!r}; {hint}valid: {', '.join(known) or 'none'}.")


class ImageError(EverlineError):
    """Bytes that are not an image everline accepts."""


class DataError(EverlineError):
    """A folder or dataset is not what was asked for."""


class WeightsError(EverlineError):
    """Backbone weights cannot be had, or do not fit the network."""


class StateError(EverlineError):
    """A detector state does not belong to the detector that should load it."""


class NotLearned(EverlineError):
    """A detector was asked to score before it had learned enough to."""


class StoreError(EverlineError):
    """The log of a line, or one of its files, cannot be used."""


class Corrupt(StoreError):
    """Bytes on disk do not match their checksum."""


class SecondWriter(StoreError):
    """Another process writes, or has taken over, this line's log."""


class NoSpace(StoreError):
    """The disk is full. What was acknowledged before is safe; this record was not accepted."""


class StoreDown(StoreError):
    """A store on S3 does not answer. What was acknowledged is safe; send what was not again."""


class UnknownLine(EverlineError):
    """No such line in this fleet."""


class UnknownImage(EverlineError):
    """No image of that id in the line's log."""


class LineDown(EverlineError):
    """The line's process died or is coming back. What it acknowledged is safe; send the same thing again."""


class LineStopped(LineDown):
    """The line could not be started several times in a row, and is not tried again by itself."""


class Busy(EverlineError):
    """As many images wait at the line as may. This one was not recorded; wait, then send it again."""


class Dropped(Busy):
    """The same, at a line that drops what does not fit (`when_full: drop`)."""


class ServerBusy(Busy):
    """The server has more to do than it takes. This image was not recorded; wait, then send it again."""


class UnknownVersion(EverlineError):
    """No such version of this line."""


class TrackingError(EverlineError):
    """MLflow could not be reached, or answered with an error."""


class PortInUse(EverlineError):
    """The HTTP port is taken by another program."""
