"""What a log consists of: manifest-<n>.json, the highest number counts. A commit is the creation of the next one.

Creation fails if the number is taken, so of two writers that commit at the same time one is refused; that is
also how a newer writer fences off an older one: it commits under a higher epoch, and the older one's next
number is taken. Every file is made once, under a name nobody else can make: FIRST RECORD-EPOCH-RANDOM.
"""

import json
import logging
import re
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..methods.errors import Corrupt, SecondWriter
from .volume import Place, Volume, volume_of

log = logging.getLogger("everline.log")
FORMAT = 1
EMPTY_BYTES = 20  # of a segment without records
KEPT = 4  # manifests that are left for readers that are still at work
MAX_BYTES = 2**28  # of a manifest: more than a million shards
_NAME = re.compile(r"manifest-([0-9]{12})\.json")
_SHARD = re.compile(r"shard-([0-9]{12})-([0-9]{8})-[0-9a-f]{8}\.arrow")
_SEGMENT = re.compile(r"segment-([0-9]{12})-([0-9]{8})-[0-9a-f]{8}\.log")
_PART = re.compile(r"(segment-[0-9]{12}-[0-9]{8}-[0-9a-f]{8}\.log)\.([0-9]{12})")  # of one on S3
_HALF = re.compile(r"\.(?:shard|manifest)-([0-9]{12})-([0-9]{8})-[0-9a-f]{8}\.tmp")


@dataclass(frozen=True)
class Shard:
    """A sealed file: `count` records from number `first` on; size and crc32 of the whole file.

    cut: its images were dropped to save room (platform/retention.py); all else of its records is there.
    """

    file: str
    first: int
    count: int
    bytes: int
    crc32: int
    cut: bool = False


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


def manifest_name(number: int) -> str:
    """Of the file that is the manifest."""
    return f"manifest-{number:012d}.json"


def numbers(folder: Place) -> list[int]:
    """Numbers of the manifests that are there, lowest first. Raises OSError."""
    found = (_NAME.fullmatch(name) for name in volume_of(folder).names("manifest-"))
    return sorted(int(match[1]) for match in found if match)


def latest(folder: Place) -> Manifest:
    """The current manifest; number 0 for a folder without one, and without records. Raises Corrupt, OSError."""
    volume = volume_of(folder)
    while True:
        found = numbers(folder)
        if not found:
            left = holding_records(folder)
            if not left:
                return Manifest()
            if numbers(folder):  # made since
                continue
            names = ", ".join(left[:3]) + " ..." * (len(left) > 3)
            raise Corrupt(
                f"{folder}: its manifests are missing; records lie in {names}. "
                "Bring the manifests back from a copy, or make one again: everline log repair LINE"
            )
        name = manifest_name(found[-1])
        try:
            if volume.sizes([name])[0] > MAX_BYTES:
                raise Corrupt(f"{folder / name}: larger than {MAX_BYTES} bytes.")
            return _parse(volume.read(name).decode("utf-8"), found[-1])
        except FileNotFoundError:  # pruned between the listing and the reading: there is a newer one
            continue
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Corrupt(f"{folder / name}: not a manifest: {error}") from error


def commit(folder: Place, manifest: Manifest) -> None:
    """Creates it, durable, if its number is free; then prunes old ones.

    Raises SecondWriter where the number is taken. After an OSError it is committed if and only if its file is
    there, and then perhaps not durable; on a remote volume it may also come to be there later, and the same commit
    again says which.
    """
    plain = {"format": FORMAT, **asdict(manifest)}
    plain["shards"] = [{k: v for k, v in one.items() if k != "cut" or v} for one in plain["shards"]]
    data = json.dumps({**plain, "crc32": _crc(plain)}, indent=1).encode()
    half = file_name("manifest", manifest.number, manifest.epoch)
    try:
        volume_of(folder).create(manifest_name(manifest.number), data, half)
    except FileExistsError:
        raise SecondWriter(
            f"{folder}: another process has taken over this log (manifest {manifest.number})."
        ) from None
    remove(folder, [manifest_name(number) for number in numbers(folder)[:-KEPT]])


def file_name(kind: str, number: int, epoch: int) -> str:
    """A name that no other writer makes, on whatever machine: a dead one's file is never opened again."""
    return f"{kind}-{number:012d}-{epoch:08d}-{secrets.token_hex(4)}"


def strangers(folder: Place, manifest: Manifest) -> list[str]:
    """Files that the manifest does not name, of its own or an older epoch: left by writers that died.

    Those of a higher epoch belong to a newer writer, who must find them.
    """
    known = {*manifest.segments, *(s.file for s in manifest.shards)}
    found = []
    for name in volume_of(folder).names():
        if part := _PART.fullmatch(name):
            name = part[1]
        match = _SHARD.fullmatch(name) or _SEGMENT.fullmatch(name) or _HALF.fullmatch(name)
        if match and name not in known and int(match[2]) <= manifest.epoch:
            found.append(name)
    return list(dict.fromkeys(found))


def holding_records(folder: Place) -> list[str]:
    """Shards and segments that hold records, whatever manifests say. An opening that died left empty segments."""
    volume = volume_of(folder)
    names = volume.names()
    if volume.remote:
        parts = (_PART.fullmatch(name) for name in names)
        segments = {part[1] for part in parts if part and int(part[2])}
    else:
        segments = {name for name in names if _SEGMENT.fullmatch(name) and _size(volume, name) > EMPTY_BYTES}
    return sorted([name for name in names if _SHARD.fullmatch(name)] + list(segments))


def first_of(name: str) -> int:
    """The number in the name of a shard or segment. Of a segment's records the first may have a higher one."""
    return _part_of(name, 1)


def epoch_of(name: str) -> int:
    """Of the writer of a shard or segment."""
    return _part_of(name, 2)


def _size(volume: Volume, name: str) -> int:
    """Bytes of a file; 0 where it has gone since it was listed."""
    try:
        return volume.sizes([name])[0]
    except FileNotFoundError:
        return 0


def _part_of(name: str, part: int) -> int:
    match = _SHARD.fullmatch(name) or _SEGMENT.fullmatch(name)
    if not match:
        raise Corrupt(f"{name}: not the name of a shard or segment.")
    return int(match[part])


def remove(folder: Place, names: Sequence[str]) -> None:
    """Tidies up; what cannot be removed does no harm."""
    volume = volume_of(folder)
    for name in names:
        try:
            volume.remove(name)
        except OSError as error:
            log.warning("%s: could not remove %s: %s", folder, name, error)


def fenced(folder: Place, mine: Manifest) -> bool:
    """Whether somebody has committed after `mine`. Raises OSError."""
    return volume_of(folder).superseded(manifest_name(mine.number), manifest_name(mine.number + 1))


def _parse(text: str, number: int) -> Manifest:
    plain = json.loads(text)
    if plain.pop("crc32") != _crc(plain):
        raise ValueError("the checksum does not match")
    if plain["format"] != FORMAT or plain["number"] != number:
        raise ValueError(f"format {plain['format']!r}, number {plain['number']!r}")
    shards = tuple(Shard(**shard) for shard in plain["shards"])
    segments = tuple(plain["segments"])
    for pattern, names in ((_SEGMENT, segments), (_SHARD, [shard.file for shard in shards])):
        for name in names:
            if not pattern.fullmatch(name):  # no path out of the folder
                raise ValueError(f"file name {name!r}")
    counted = [plain["epoch"], *(n for shard in shards for n in (shard.first, shard.count, shard.bytes, shard.crc32))]
    if not all(type(n) is int and 0 <= n < 2**63 for n in counted) or any(type(s.cut) is not bool for s in shards):
        raise ValueError("a number is out of range")
    following = 0
    for shard in shards:
        if shard.first != following or not shard.count:
            raise ValueError(f"{shard.file} begins with record {shard.first}, not {following}")
        following += shard.count
    return Manifest(number, plain["epoch"], shards, segments)


def _crc(plain: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())
