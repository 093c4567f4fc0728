"""Features of a frozen backbone on disk: written once, by whoever comes first, and read by all, image by image.

FOLDER/features.json       what there is: names, checksums, and how long an image took
FOLDER/shard-0000.arrow    Arrow IPC files of about 64 MiB, a record batch for each image

The folder appears whole or not at all: it is written beside its place and then renamed. Nothing in it ever changes.
"""

import json
import math
import re
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..methods.errors import Corrupt

FORMAT = 1
MANIFEST = "features.json"
MAX_MANIFEST = 2**28  # bytes: more than a million images
MAX_ROW = 2**28  # floats of one image: 1 GiB
OPEN_FILES = 64  # shards at most, of all stores of this process
Shape = tuple[int, int, int]
_HEX = re.compile(r"[0-9a-f]{64}")


def schema(shape: Shape) -> pa.Schema:
    """Of a shard: a name, and C x h x w floats in that order."""
    floats = pa.list_(pa.field("item", pa.float32(), nullable=False), math.prod(shape))
    return pa.schema([pa.field("name", pa.string(), False), pa.field("features", floats, False)])


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{number:04d}.arrow"


@dataclass(frozen=True)
class Shard:
    """`rows`: name and crc32 (of the floats, little-endian) of each image, in order. `bytes`: of the whole file."""

    bytes: int
    rows: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Manifest:
    """key: 64 hexadecimal digits that say what the features were made from. shape: (C, h, w) of every image.

    ms_per_image: mean milliseconds of an image in the backbone, measured while the store was written.
    """

    key: str
    shape: Shape
    ms_per_image: float
    shards: tuple[Shard, ...]

    def dumps(self) -> bytes:
        """As JSON with a checksum."""
        shards = [{"bytes": shard.bytes, "rows": [list(row) for row in shard.rows]} for shard in self.shards]
        plain = {"format": FORMAT, "key": self.key, "shape": list(self.shape), "ms_per_image": self.ms_per_image}
        plain["shards"] = shards
        return json.dumps({**plain, "crc32": _crc(plain)}, allow_nan=False).encode()

    @classmethod
    def loads(cls, data: bytes) -> "Manifest":
        """The reverse. Raises ValueError, KeyError, TypeError, AttributeError or RecursionError for anything else."""
        plain = json.loads(data)
        if plain.pop("crc32") != _crc(plain):
            raise ValueError("the checksum does not match")
        if plain["format"] != FORMAT or not _HEX.fullmatch(plain["key"]):
            raise ValueError(f"format {plain['format']!r}, key {plain['key']!r}")
        shards = tuple(Shard(one["bytes"], tuple((name, crc) for name, crc in one["rows"])) for one in plain["shards"])
        found = cls(plain["key"], tuple(plain["shape"]), plain["ms_per_image"], shards)
        found.check()
        return found

    def check(self) -> None:
        """Raises ValueError for what cannot be read as it stands."""
        if len(self.shape) != 3 or not all(_whole(side, 1, MAX_ROW) for side in self.shape):
            raise ValueError(f"shape {self.shape!r}")
        if math.prod(self.shape) > MAX_ROW:
            raise ValueError(f"shape {self.shape!r}: more than {MAX_ROW} floats an image")
        if type(self.ms_per_image) is not float or not 0 <= self.ms_per_image < math.inf:
            raise ValueError(f"ms_per_image {self.ms_per_image!r}")
        rows = [row for shard in self.shards for row in shard.rows]
        if not all(isinstance(name, str) and _whole(crc, 0, 2**32) for name, crc in rows):
            raise ValueError("an image's name or checksum is none")
        if not all(_whole(shard.bytes, 1, 2**63) and shard.rows for shard in self.shards):
            raise ValueError("a shard is empty")
        if len({name for name, _ in rows}) < len(rows):
            raise ValueError("an image is there twice")


class FeatureStore:
    """Features by name. Images are read one by one, through the page cache, and nothing is kept in memory.

    An image's checksum is compared when it is first read in a process (again, where its shard was closed since).
    """

    _open: ClassVar[OrderedDict[tuple[Path, int, int], "_Mapped"]] = OrderedDict()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, folder: Path, key: str) -> None:
        """key: what the features must have been made from. Raises Corrupt, and FileNotFoundError for no store."""
        file, self._mend = folder / MANIFEST, f"remove {folder} to have it made anew"
        try:
            if file.stat().st_size > MAX_MANIFEST:
                raise ValueError(f"larger than {MAX_MANIFEST} bytes")
            self.manifest = Manifest.loads(file.read_bytes())
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Corrupt(
                f"{file}: not a store of features: {error}; remove {folder} to have it made anew."
            ) from error
        if self.manifest.key != key:
            raise Corrupt(f"{file}: made from something else (key {self.manifest.key}, expected {key}).")
        self.folder = folder
        self._places = {
            name: (number, row, crc)
            for number, shard in enumerate(self.manifest.shards)
            for row, (name, crc) in enumerate(shard.rows)
        }

    @classmethod
    def there(cls, folder: Path) -> bool:
        """Whether there is one, whatever its state."""
        return (folder / MANIFEST).is_file()

    @property
    def shape(self) -> Shape:
        """(C, h, w) of every image."""
        return self.manifest.shape

    @property
    def ms_per_image(self) -> float:
        """Mean milliseconds that an image took in the backbone, on the machine that wrote the store."""
        return self.manifest.ms_per_image

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.manifest.shards)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def get(self, name: str) -> Tensor:
        """float32 (1, C, h, w) on the CPU, the caller's own. Raises Corrupt, KeyError for a name that is not there."""
        number, row, crc = self._places[name]
        path = shard_path(self.folder, number)
        try:
            mapped = self._mapped(path, self.manifest.shards[number])
            floats = mapped.floats(row, name)
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            raise Corrupt(f"{path}: {error}; {self._mend}.") from error
        if row not in mapped.checked:
            if zlib.crc32(floats.data) != crc:
                raise Corrupt(f"{path}: the checksum of image {row} does not match; {self._mend}.")
            mapped.checked.add(row)
        return torch.from_numpy(floats.copy()).view(1, *self.shape)

    def _mapped(self, path: Path, shard: Shard) -> "_Mapped":
        """The shard as it lies there now: another file under its name, or one cut short, is never read as before."""
        now = path.stat()
        if now.st_size != shard.bytes:
            raise ValueError(f"{now.st_size} bytes, the manifest says {shard.bytes}")
        key = (path, now.st_ino, now.st_mtime_ns)
        with self._lock:
            if key not in self._open:
                self._open[key] = _Mapped(pa.ipc.open_file(pa.memory_map(str(path))), schema(self.shape))
            self._open.move_to_end(key)
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
            return self._open[key]


@dataclass
class _Mapped:
    """An open shard. checked: its images whose checksum was found right."""

    reader: pa.ipc.RecordBatchFileReader
    wanted: pa.Schema
    checked: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not self.reader.schema.equals(self.wanted):
            raise ValueError("its columns are not those of a store of features")

    def floats(self, row: int, name: str) -> NDArray[np.float32]:
        """One image's, still in the file. Validated: offsets that lead out of the file would end the process."""
        batch = self.reader.get_batch(row)
        batch.validate(full=True)
        names, lists = batch.columns
        if names.to_pylist() != [name] or lists.null_count:
            raise ValueError(f"image {row} is not {name!r}")
        return lists.flatten().to_numpy(zero_copy_only=True)


def _whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value < high


def _crc(plain: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())
