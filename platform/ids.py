"""The ids of images: which image an id names, where senders use one again, and where the ids of a log are held."""

import hashlib
import logging
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from tempfile import mkstemp
from typing import Any
from weakref import finalize

from ..methods.errors import StoreError

log = logging.getLogger("everline.ids")

MAX_ID = 256  # characters, also of who gave a word
UNKNOWN = "unknown:"  # before the id of an image whose sender is not known
COMPARED = 16  # of the images that one id was used for: the first, and so many of the newest


def foreign(id: str) -> str:
    """Returns the id of an image whose sender is not known."""
    return UNKNOWN + _cut(id, MAX_ID - len(UNKNOWN))


def numbered(id: str, number: int) -> str:
    """Returns the id of the image that came as the `number`th with an id: `part-7`, `part-7#2`, `part-7#3`."""
    end = f"#{number}" if number > 1 else ""
    return _cut(id, MAX_ID - len(end)) + end


def which(
    id: str, image: bytes, known: Mapping[str, int], checksum: Callable[[int], int | None]
) -> tuple[str, int | None]:
    """Returns the id of an image that came with `id`, and its record where the log has the same bytes under that id.

    Other bytes are another image, with an id of its own: a counter has started again, or two cameras use the same ids.
    known: id -> record. checksum: CRC-32 of a record's image, also where its bytes were dropped.
    """
    if id not in known:
        return id, None
    last, far = 1, 2
    while numbered(id, far) in known:
        last, far = far, 2 * far
    while far - last > 1:
        middle = (last + far) // 2
        last, far = (middle, far) if numbered(id, middle) in known else (last, middle)
    crc = zlib.crc32(image)
    for number in [1, *range(last, max(1, last - COMPARED), -1)]:
        name = numbered(id, number)
        if checksum(known[name]) == crc:
            return name, known[name]
    while (name := numbered(id, last + 1)) in known:
        last += 1
    return name, None


class Ids(Mapping[str, int]):
    """Image id -> number of its record. Some MiB are in memory, the rest in a file that goes with the process.

    The file is made from the log at each opening: it is never older than the log, and nothing has to be recovered. Ids
    that the disk has no room for are held in memory, and a warning says so.
    """

    def __init__(self, pairs: Callable[[], Iterable[tuple[str, int]]] = tuple) -> None:
        """pairs: returns ids and numbers, perhaps twice; of an id that comes again the highest number counts."""
        self.failed = ""  # why none can be looked up any more
        self._rest: dict[str, int] = {}  # for which the disk had no room
        try:
            self._db = _filled(_on_disk(), pairs())
        except sqlite3.Error as error:
            _warn(error)
            self._db = _filled(_in_memory(), pairs())
        finalize(self, self._db.close)

    def __getitem__(self, id: str) -> int:
        """Raises KeyError; StoreError where the file cannot be read."""
        if id in self._rest:
            return self._rest[id]
        for (seq,) in self._rows("select seq from ids where id = ?", _key(id)):
            return int(seq)
        raise KeyError(id)

    def __setitem__(self, id: str, seq: int) -> None:
        try:
            self._db.execute("insert or replace into ids values (?, ?)", (_key(id), seq))
            self._rest.pop(id, None)
        except sqlite3.Error as error:
            if not self._rest:
                _warn(error)
            self._rest[id] = seq

    def __iter__(self) -> Iterator[str]:
        yield from self._rest
        for (key,) in self._rows("select id from ids"):
            if (id := key.decode(errors="surrogatepass")) not in self._rest:
                yield id

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _rows(self, query: str, *values: bytes) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._db.execute(query, values)
        except sqlite3.Error as error:
            self.failed = f"the image ids in {_folder()} cannot be read: {error}"
            raise StoreError(f"{self.failed}. Start the line again: it makes them anew from its log.") from error


def _folder() -> str:
    """Where SQLite puts its temporary files, too: /tmp is in memory on many machines."""
    places = "/var/tmp", "/tmp"  # noqa: S108 (`mkstemp` makes the file)
    return os.environ.get("TMPDIR") or places[not os.access(places[0], os.W_OK)]


def _on_disk() -> sqlite3.Connection:
    """A database in a file without a name. What is committed is written, so that looking up needs no room."""
    try:
        file, name = mkstemp(prefix="everline-ids-", dir=_folder())
    except OSError as error:
        raise sqlite3.OperationalError(error.strerror) from error
    os.close(file)
    try:
        db = sqlite3.connect(name, isolation_level=None, check_same_thread=False)
    finally:
        os.unlink(name)
    db.execute("pragma temp_store = file")
    db.execute("pragma cache_size = -8192")  # KiB in memory
    db.execute("pragma locking_mode = exclusive")
    return db


def _in_memory() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    db.execute("pragma temp_store = memory")  # else what is sorted goes to the disk
    return db


def _filled(db: sqlite3.Connection, pairs: Iterable[tuple[str, int]]) -> sqlite3.Connection:
    """Makes the table, sorted first: in the order in which ids come, each could be written to another page."""
    try:
        db.execute("pragma synchronous = off")
        db.execute("pragma journal_mode = off")
        db.execute("create table ids (id blob primary key, seq integer) without rowid")
        db.execute("create table unsorted (id blob, seq integer)")
        db.execute("begin")
        db.executemany("insert into unsorted values (?, ?)", ((_key(id), seq) for id, seq in pairs))
        db.execute("insert or replace into ids select id, seq from unsorted order by id, seq")
        db.execute("drop table unsorted")
        db.execute("commit")
        db.execute("pragma journal_mode = memory")  # from here on one that fails leaves the others as they are
    except BaseException:
        db.close()
        raise
    return db


def _warn(error: sqlite3.Error) -> None:
    log.warning("image ids cannot be written to %s: %s; they are held in memory", _folder(), error)


def _key(id: str) -> bytes:
    return id.encode(errors="surrogatepass")


def _cut(id: str, most: int) -> str:
    """An id of at most so many characters; of one that is longer, its end is replaced by its checksum."""
    return id if len(id) <= most else f"{id[: most - 17]}:{hashlib.sha256(id.encode()).hexdigest()[:16]}"
