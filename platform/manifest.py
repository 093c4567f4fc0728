"""What a log consists of: manifest-<n>.json, the highest number counts. A commit is the creation of the next one.

Creation fails if the number is taken, so of two writers that commit at the same time one is refused; that is
also how a newer writer fences off an older one: it commits under a higher epoch, and the older one's next
number is taken.
"""

import json
import os
import re
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..methods.errors import Corrupt, SecondWriter

FORMAT = 1
KEPT = 4  # manifests that are left for readers that are still at work
_NAME = re.compile(r"manifest-(\d{12})\.json")
_FILE = re.compile(r"(shard|segment)-[0-9]{12}-[0-9]{8}\.(arrow|log)")


@dataclass(frozen=True)
class Shard:
    """A sealed file: `count` records from number `first` on; size and crc32 of the whole file."""

    file: str
    first: int
    count: int
    bytes: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """`segments`: open files in order; all but the last are left-overs of a writer that died."""

    number: int = 0
    epoch: int = 0
    shards: tuple[Shard, ...] = ()
    segments: tuple[str, ...] = ()

    @property
    def sealed(self) -> int:
        """Records in sealed shards."""
        return self.shards[-1].first + self.shards[-1].count if self.shards else 0

    def next(self, **changes: Any) -> "Manifest":
        """The manifest that follows this one."""
        return replace(self, number=self.number + 1, **changes)


def path_of(folder: Path, number: int) -> Path:
    """Where a manifest lies."""
    return folder / f"manifest-{number:012d}.json"


def numbers(folder: Path) -> list[int]:
    """Numbers of the manifests that are there, lowest first."""
    found = (_NAME.fullmatch(name) for name in os.listdir(folder)) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in found if match)


def latest(folder: Path) -> Manifest:
    """The current manifest; number 0 for a folder without one. Raises Corrupt."""
    while True:
        found = numbers(folder)
        if not found:
            return Manifest()
        try:
            return _parse(path_of(folder, found[-1]).read_text("utf-8"), found[-1])
        except FileNotFoundError:  # pruned between the listing and the reading: there is a newer one
            continue
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"{path_of(folder, found[-1])}: not a manifest: {error}") from error


def commit(folder: Path, manifest: Manifest) -> None:
    """Creates it, durable, if its number is free; then prunes old ones. Raises SecondWriter where it is taken."""
    target = path_of(folder, manifest.number)
    half = folder / f".{target.name}.{os.getpid()}.tmp"
    plain = {"format": FORMAT, **asdict(manifest)}
    write_synced(half, json.dumps({**plain, "crc32": _crc(plain)}, indent=1).encode())
    try:
        os.link(half, target)  # unlike a rename, this fails where the name exists
    except FileExistsError:
        raise SecondWriter(
            f"{folder}: another process has taken over this log (manifest {manifest.number})."
        ) from None
    finally:
        half.unlink()
    sync_folder(folder)
    for number in numbers(folder)[:-KEPT]:
        path_of(folder, number).unlink(missing_ok=True)


def fenced(folder: Path, mine: Manifest) -> bool:
    """Whether somebody has committed after `mine`. Two looks at the folder, cheap enough for every append."""
    return path_of(folder, mine.number + 1).exists() or not path_of(folder, mine.number).exists()


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


def _parse(text: str, number: int) -> Manifest:
    plain = json.loads(text)
    if plain.pop("crc32") != _crc(plain):
        raise ValueError("the checksum does not match")
    if plain["format"] != FORMAT or plain["number"] != number:
        raise ValueError(f"format {plain['format']!r}, number {plain['number']!r}")
    shards = tuple(Shard(**shard) for shard in plain["shards"])
    segments = tuple(plain["segments"])
    for name in [*segments, *(shard.file for shard in shards)]:
        if not _FILE.fullmatch(name):  # no path out of the folder
            raise ValueError(f"file name {name!r}")
    return Manifest(number, int(plain["epoch"]), shards, segments)


def _crc(plain: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())
