"""Writing a store of features (see `featurestore.py`): image by image, beside its place, and then all at once."""

import errno
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.ipc
from torch import Tensor, float32

from ..methods.errors import ConfigError, NoSpace, StoreError
from .featurestore import MANIFEST, MAX_ROW, FeatureStore, Manifest, Shape, Shard, schema, shard_path
from .volume import sync_folder, write_synced

SHARD_BYTES = 64 * 2**20  # of a shard, unless one image alone has more
ABANDONED = 3600.0  # seconds in which a writer has written nothing: it is dead


def write_features(
    folder: Path, key: str, rows: Iterable[tuple[str, Tensor]], ms_per_image: Callable[[], float]
) -> bool:
    """Writes a store from (name, float32 (1, C, h, w)), all of one shape; one image at a time is in memory.

    key: 64 hexadecimal digits, what the features are made from. ms_per_image: asked at the end; see `Manifest`.
    False where somebody else's was there first: theirs stays, and this one is thrown away.
    Raises ConfigError for rows of another kind, for a name that comes twice and for no rows; NoSpace, StoreError,
    and whatever `rows` raises: then nothing is left behind.
    """
    half = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.tmp"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
        half.mkdir()
        with _Shards(half) as shards:
            for name, features in rows:
                shards.add(name, features)
        manifest = shards.manifest(key, float(ms_per_image()))
        write_synced(half / MANIFEST, manifest.dumps())
        sync_folder(half)
        return _moved(half, folder, key)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{folder}: the disk is full; the features were not stored.") from error
        raise StoreError(f"{folder}: the features cannot be stored: {error}") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _moved(half: Path, folder: Path, key: str) -> bool:
    """Gives the store its name: a folder that holds something is never replaced."""
    try:
        half.rename(folder)
    except OSError:
        if not FeatureStore.there(folder):
            raise
        FeatureStore(folder, key)
        return False
    sync_folder(folder.parent)
    return True


def _tidy(folder: Path) -> None:
    """Removes what writers left that died on the way."""
    for half in folder.parent.glob(".*.tmp"):
        if half.name.startswith(f".{folder.name}.") and time.time() - _touched(half) > ABANDONED:
            shutil.rmtree(half, ignore_errors=True)


def _touched(half: Path) -> float:
    """When something was written last."""
    try:
        return max(path.stat().st_mtime for path in (half, *half.iterdir()))
    except OSError:  # it is being removed, or was moved to its place
        return time.time()


class _Shards:
    """The shards of a store as they are written; one of them is open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shape: Shape | None = None
        self.done: list[Shard] = []
        self.names: set[str] = set()
        self.rows: list[tuple[str, int]] = []  # of the open one
        self.room = 0  # bytes left in it
        self.open = ExitStack()
        self.file: Any = None
        self.out: Any = None

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self._close()
        else:
            self.open.close()

    def add(self, name: str, features: Tensor) -> None:
        """Writes one image's."""
        self.shape = self.shape or _shape(features)
        if features.dtype != float32 or features.shape != (1, *self.shape):
            got = f"{features.dtype} {tuple(features.shape)}"
            raise ConfigError(f"features: {name!r} must be float32 {(1, *self.shape)}, got {got}.")
        if name in self.names or not _utf8(name):
            raise ConfigError(f"features: the name {name!r} comes twice, or is not text that UTF-8 can hold.")
        floats = features.detach().cpu().contiguous().view(-1).numpy()
        if floats.nbytes > self.room or not self.rows:
            self._next(self.shape)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(floats), type=schema(self.shape).field("features").type)
        self.out.write_batch(pa.record_batch([pa.array([name]), lists], schema=schema(self.shape)))
        self.room -= floats.nbytes
        self.names.add(name)
        self.rows.append((name, zlib.crc32(floats.data)))

    def manifest(self, key: str, ms_per_image: float) -> Manifest:
        """What was written. Raises ConfigError for nothing, and for what no store may have."""
        if self.shape is None:
            raise ConfigError("features: there are no images to store.")
        found = Manifest(key, self.shape, ms_per_image, tuple(self.done))
        try:
            return Manifest.loads(found.dumps())
        except ValueError as error:
            raise ConfigError(f"features: these cannot be stored: {error}.") from error

    def _next(self, shape: Shape) -> None:
        self._close()
        self.file = self.open.enter_context(shard_path(self.folder, len(self.done)).open("xb"))
        self.out = self.open.enter_context(pa.ipc.new_file(self.file, schema(shape)))
        self.room = SHARD_BYTES

    def _close(self) -> None:
        if not self.rows:
            return
        self.out.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.open.close()
        path = shard_path(self.folder, len(self.done))
        self.done.append(Shard(path.stat().st_size, tuple(self.rows)))
        self.rows = []


def _shape(features: Tensor) -> Shape:
    if features.ndim != 4 or len(features) != 1 or not 0 < features.numel() <= MAX_ROW:
        raise ConfigError(f"features: expected (1, C, h, w) of at most {MAX_ROW} floats, got {tuple(features.shape)}.")
    _, channels, height, width = features.shape
    return channels, height, width


def _utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
