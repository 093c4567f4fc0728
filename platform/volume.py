"""Where a log lies: a local folder (here) or a prefix of an S3 bucket (platform/s3.py), behind one small seam.

Files are made once and never changed; only a segment grows. What fails raises OSError: FileNotFoundError,
FileExistsError, and `Away` where a store did not answer.
"""

import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa

from ..methods.errors import ConfigError

S3 = "s3://"
PRIVATE = 0o750  # of folders with images and models: other users of the machine have no business there
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class Away(OSError):
    """The store did not answer in time, or said that it cannot now; what was asked may be carried out all the same."""


@dataclass(frozen=True, order=True)
class S3Path:
    """A folder or file in a bucket; `key` without slashes at its ends, empty for the bucket itself."""

    bucket: str
    key: str = ""

    def __truediv__(self, name: str) -> "S3Path":
        return S3Path(self.bucket, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return f"{S3}{self.bucket}/{self.key}".rstrip("/")

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> "S3Path":
        """The folder that it lies in."""
        return S3Path(self.bucket, self.key.rpartition("/")[0])


Place: TypeAlias = Path | S3Path


def expanded(text: str) -> Path:
    """Return a path, in which a `~` or `~USER` at its beginning is that user's home folder. Raises ConfigError."""
    found = os.path.expanduser(text)
    if found.startswith("~"):
        raise ConfigError(
            f"{text}: no home folder is known for {text.partition('/')[0]}; write the whole path, or ./{text} for a "
            "folder of that name."
        )
    return Path(found)


def place_of(text: str, base: Path | None = None) -> Place:
    """`s3://bucket/prefix`, or a local path, which starts at `base` if that is given. Raises ConfigError."""
    if not text.startswith(S3):
        return Path(text) if base is None else (base / expanded(text)).resolve()
    bucket, _, key = text.removeprefix(S3).partition("/")
    key = key.rstrip("/")
    if not _BUCKET.fullmatch(bucket) or (key and not all(part.strip(".") for part in key.split("/"))):
        raise ConfigError(
            f"store {text!r}: expected s3://bucket/prefix, the bucket in small letters, digits, '-', '.'."
        )
    return S3Path(bucket, key)


def volume_of(where: Place) -> "Volume":
    """What reads and writes there."""
    if isinstance(where, Path):
        return LocalVolume(where)
    from .s3 import S3Volume  # boto3 takes a moment to load

    return S3Volume(where)


class Growing(ABC):
    """A segment that is written."""

    @abstractmethod
    def append(self, data: bytes) -> None:
        """Durable behind all that was appended before when it returns. Raises OSError; then see `cut`."""

    @abstractmethod
    def cut(self, length: int) -> bool:
        """After a failed append: ends at this length again. False where nobody can tell whether that holds."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of it."""


class Volume(ABC):
    """A folder of files, and folders of such.

    remote: requests may be lost, or carried out after nobody waits for them any more; an append is there whole or
    not at all; looking costs a request; there is no lock.
    """

    remote: bool

    @abstractmethod
    def names(self, prefix: str = "") -> list[str]:
        """Files in it, in no order; none where the folder is not there."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Folders in it, in no order."""

    @abstractmethod
    def sizes(self, names: Sequence[str]) -> list[int]:
        """Bytes of each."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A whole file."""

    @abstractmethod
    def open(self, name: str) -> pa.NativeFile:
        """A file for random access."""

    @abstractmethod
    def create(self, name: str, data: bytes, half: str) -> None:
        """A whole durable file, unless the name is taken (FileExistsError). half: a name of its own until then.

        After another OSError it may be there. Where `remote`, the same call again finds out.
        """

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """A file under a name nobody else uses; it counts once something else names it. Its name: see `sync`."""

    @abstractmethod
    def replace(self, name: str, data: bytes, half: str) -> None:
        """A whole file in place of the one of that name, if there is one. half: as of `create`."""

    @abstractmethod
    def sync(self) -> None:
        """Makes the names of written files durable."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Also a segment. No error where it is not there."""

    @abstractmethod
    def remove_all(self) -> None:
        """The folder and what is in it."""

    @abstractmethod
    def superseded(self, name: str, following: str) -> bool:
        """Whether the file that follows this one (by name) is there, or this one has been pruned since."""

    @abstractmethod
    def start(self, name: str, head: bytes) -> Growing:
        """A new segment, durable, which begins with `head`. After an OSError nothing of it counts."""

    @abstractmethod
    def grown(self, name: str, at: int) -> tuple[bytes, int]:
        """What a segment holds from a position on, and the position behind it; 0 is the beginning."""

    def fault(self, error: OSError) -> OSError:
        """What an error of a file that `open` gave means: `Away` where the store did not answer."""
        return error


def write_all(file: int, data: bytes) -> None:
    """Writes on where a write was short. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def write_synced(path: Path, data: bytes) -> None:
    """A whole new file, durable (its name is, after `sync_folder`)."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_durable(folder: Path) -> None:
    """Makes a folder and those above it, and their names durable. Owner and group may look into new ones."""
    for missing in reversed([f for f in (folder, *folder.parents) if not f.exists()]):
        missing.mkdir(mode=PRIVATE, exist_ok=True)
        sync_folder(missing.parent)


class LocalGrowing(Growing):
    """A file that is appended to; a crash may leave its last append torn."""

    def __init__(self, file: int) -> None:
        self._file = file

    def append(self, data: bytes) -> None:
        """Writes and syncs."""
        write_all(self._file, data)
        os.fdatasync(self._file)

    def cut(self, length: int) -> bool:
        """Raises OSError where the disk does not do it."""
        os.ftruncate(self._file, length)
        os.fsync(self._file)
        return True

    def close(self) -> None:
        """Once."""
        os.close(self._file)


class LocalVolume(Volume):
    """A folder of a local disk."""

    remote = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self, prefix: str = "") -> list[str]:
        """Of folders, too."""
        try:
            return [name for name in os.listdir(self.folder) if name.startswith(prefix)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def folders(self) -> list[str]:
        """Not those that are links."""
        return [n for n in self.names() if (p := self.folder / n).is_dir() and not p.is_symlink()]

    def sizes(self, names: Sequence[str]) -> list[int]:
        """One look for each."""
        return [(self.folder / name).stat().st_size for name in names]

    def read(self, name: str) -> bytes:
        """At once."""
        return (self.folder / name).read_bytes()

    def open(self, name: str) -> pa.NativeFile:
        """A memory map."""
        return pa.memory_map(str(self.folder / name))

    def create(self, name: str, data: bytes, half: str) -> None:
        """A hard link: unlike a rename, it fails where the name exists."""
        unfinished = self.folder / f".{half}.tmp"
        try:
            write_synced(unfinished, data)
            os.link(unfinished, self.folder / name)
        finally:
            with suppress(OSError):  # the next who opens the log tidies up
                unfinished.unlink(missing_ok=True)
        self.sync()

    def write(self, name: str, data: bytes) -> None:
        """Makes the folder if need be."""
        if not self.folder.exists():
            make_durable(self.folder)
        write_synced(self.folder / name, data)

    def replace(self, name: str, data: bytes, half: str) -> None:
        """Makes the folder if need be."""
        unfinished = self.folder / f".{half}.tmp"
        try:
            self.write(unfinished.name, data)
            unfinished.replace(self.folder / name)
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def sync(self) -> None:
        """Of the folder itself."""
        sync_folder(self.folder)

    def remove(self, name: str) -> None:
        """At once; it comes back if the machine stops now, and does no harm then."""
        (self.folder / name).unlink(missing_ok=True)

    def remove_all(self) -> None:
        """What is only a link is left alone."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def superseded(self, name: str, following: str) -> bool:
        """Two looks at the folder, cheap enough for every append."""
        return (self.folder / following).exists() or not (self.folder / name).exists()

    def start(self, name: str, head: bytes) -> Growing:
        """Never over another."""
        path = self.folder / name
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            write_all(file, head)
            os.fsync(file)
            self.sync()
        except BaseException:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        return LocalGrowing(file)

    def grown(self, name: str, at: int) -> tuple[bytes, int]:
        """Positions are bytes."""
        path = self.folder / name
        if not at:
            data = path.read_bytes()
        else:
            with path.open("rb") as file:
                file.seek(at)
                data = file.read()
        return data, at + len(data)
