"""Checksums of what a run was made from: other images are another experiment."""

import hashlib
import json
from pathlib import Path

from ...methods.errors import DataError
from ...platform.names import nfc
from .datasets import Task


def fingerprint(task: Task) -> str:
    """A checksum of a task's images and masks and of what they are to it, wherever they lie."""
    rows = [["train", nfc(path.name), digest(path)] for path in task.train]
    for sample in task.test:
        masks = (digest(mask) for mask in sample.masks)
        rows.append([nfc(sample.kind), nfc(sample.path.name), digest(sample.path), *masks])
    return checksum(json.dumps(rows))


def checksum(*texts: str) -> str:
    """sha256 of several texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def digest(path: Path) -> str:
    """sha256 of a file. Raises DataError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error}") from error
