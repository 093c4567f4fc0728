"""`everline log export`: a line's log for an auditor, as Parquet or as images with a CSV."""

import csv
import json
import re
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq

from ...methods.errors import ConfigError, StoreError
from ...platform.images import suffix_of
from ...platform.log import LogReader, has_log, line_folder
from ...platform.record import SCHEMA, Record, plain_json
from ...platform.settings import read_fleet
from ..console import OUT, fleet_option, json_option, progress, write_json
from ..files import FilePath

GROUP_ROWS, GROUP_BYTES = 4096, 32 * 2**20  # of a Parquet row group, which is what is held in memory
PART_BYTES = 512 * 2**20  # of images in a Parquet file
IN_A_FOLDER = 1000  # image files
VERDICTS = ("pass", "reject", "learning")
INSPECTIONS = ("image", "repeat")  # kinds of record; an operator's word has the verdict of its image, too
FORMULA = "=+-@\t\r\n＝＋－＠'"  # what a spreadsheet may take for a formula, and the mark that prevents it
REVISED = [
    pa.field("revised_to", pa.string()),
    pa.field("revised_at", pa.timestamp("ns", "UTC")),
    pa.field("revised_by", pa.string()),
]
TABLE = pa.schema(
    [*(pa.field("time", pa.timestamp("ns", "UTC")) if f.name == "time_ns" else f for f in SCHEMA), *REVISED]
)
TEXT = ("kind", "id", "task", "verdict", "revised_to", "revised_by", "data")  # columns that may hold anything
CSV = [*(name for name in TABLE.names if name not in ("data", "image", "image_crc32")), "image_crc32", "file", "data"]


@dataclass(frozen=True)
class Revision:
    """What a person said of an image afterwards; of several the last counts."""

    to: str
    at_ns: int
    by: str | None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which records are exported. Numbers: `first` to `last`; times (ns): from `since_ns`, before `until_ns`.

    verdicts: of inspections, and no other records; empty: all records.
    """

    first: int = 0
    last: int | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    verdicts: tuple[str, ...] = ()

    def __contains__(self, record: Record) -> bool:
        return (
            record.seq >= self.first
            and (self.last is None or record.seq <= self.last)
            and (self.since_ns is None or record.time_ns >= self.since_ns)
            and (self.until_ns is None or record.time_ns < self.until_ns)
            and (not self.verdicts or (record.kind in INSPECTIONS and record.verdict in self.verdicts))
        )


@dataclass
class Exported:
    """What was written."""

    line: str
    format: str
    records: int = 0
    images: int = 0
    image_bytes: int = 0
    revised: int = 0


@click.command("export")
@click.argument("line")
@fleet_option
@click.option("--to", "out", type=FilePath(), required=True, help="A new folder; it appears whole.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["parquet", "images"]),
    default="parquet",
    show_default=True,
    help="`images`: a file each, and records.csv.",
)
@click.option("--since", help="First record number, or a date or time (UTC unless it says otherwise).")
@click.option("--until", help="Last record number, or a time before which, or a date up to whose end.")
@click.option(
    "--only", multiple=True, type=click.Choice(VERDICTS), help="Inspections of this verdict, and nothing else."
)
@json_option
def export(
    line: str,
    fleet_file: Path,
    out: Path,
    kind: str,
    since: str | None,
    until: str | None,
    only: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Write the records of LINE's log for an auditor: when, which version, threshold and verdict, revised by whom.

    May run while the line works; what comes meanwhile is left out.
    """
    fleet = read_fleet(fleet_file)
    fleet.line(line)
    folder = line_folder(fleet.store, line)
    if not has_log(folder):
        raise StoreError(f"line {line} has no log in {fleet.store} yet: nothing was ever sent to it.")
    chosen = chosen_of(since, until, only)
    with progress() as shown:
        reader = LogReader(folder)
        bar = shown.add_task(f"{line}: records", total=len(reader), images=False)
        found = write(reader, line, out, kind, chosen, lambda seq: shown.update(bar, completed=seq + 1))
    write_json(asdict(found), json_file)
    if str(json_file) != "-":
        OUT.print(
            f"{out}: {found.records} records, {found.revised} of them revised, "
            f"{found.images} images of {found.image_bytes} bytes",
            markup=False,
        )


def write(reader: LogReader, line: str, out: Path, kind: str, chosen: Chosen, told: Callable[[int], None]) -> Exported:
    """Writes what is chosen as `out`, which appears when all is written. told: the number of a record passed.

    Memory: a row group and a number for each revision. Raises ConfigError where `out` holds something, StoreError,
    Corrupt; then nothing is left of it.
    """
    done = Exported(line, kind)
    revisions = revised(reader)
    with NewFolder(out) as half, Parquet(half) if kind == "parquet" else Images(half) as sink:
        for record in _records(reader, chosen):
            told(record.seq)
            if record not in chosen:
                continue
            if chosen.verdicts:
                (record,) = reader.get([record.seq])
            revision = revisions.get(record.seq)
            sink.add(record, row_of(record, revision))
            done.records += 1
            done.images += record.image is not None
            done.image_bytes += len(record.image or b"")
            done.revised += revision is not None
        sink.finish()
        about = {**asdict(done), "chosen": asdict(chosen), "log_records": len(reader)}
        (half / "export.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    return done


def _records(reader: LogReader, chosen: Chosen) -> Iterator[Record]:
    """Those up to the last one wanted; few are wanted of a verdict, so their images are read one by one."""
    for record in reader.records(after=chosen.first - 1, images=not chosen.verdicts):
        if chosen.last is None or record.seq <= chosen.last:
            yield record
        if chosen.last is not None and record.seq >= chosen.last:
            return


def revised(reader: LogReader) -> dict[int, Revision]:
    """Image record's number -> the last word of an operator on it (`feedback` records), wherever in the log."""
    found = {}
    for record in reader.records(images=False):
        of, label = record.data.get("of"), record.data.get("label")
        if record.kind == "feedback" and type(of) is int and isinstance(label, str):
            by = record.data.get("by")
            found[of] = Revision(label, record.time_ns, by if isinstance(by, str) else None)
    return found


def row_of(record: Record, revision: Revision | None) -> dict[str, Any]:
    """A record as the columns of TABLE."""
    plain = record.head() | {
        "time": record.time_ns,
        "data": plain_json(record.data),
        "image": record.image,
        "image_crc32": None if record.image is None else zlib.crc32(record.image),
        "revised_to": revision and revision.to,
        "revised_at": revision and revision.at_ns,
        "revised_by": revision and revision.by,
    }
    return {name: plain[name] for name in TABLE.names}


class Parquet(AbstractContextManager["Parquet"]):
    """records-<n>.parquet, n: the number of the first record in it; 512 MB of images each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()  # Arrow takes a relative one such as `a:b` for an address
        self._rows: list[dict[str, Any]] = []
        self._bytes = self._part_bytes = 0
        self._file: pq.ParquetWriter | None = None

    def add(self, record: Record, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._bytes += len(record.image or b"")
        if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        self._flush()
        if not any(self.folder.iterdir()):
            pq.write_table(TABLE.empty_table(), self.folder / "records-000000000000.parquet")

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _flush(self) -> None:
        if self._rows:
            if self._file is None:
                name = f"records-{self._rows[0]['seq']:012d}.parquet"
                codecs = {column: "none" if column == "image" else "zstd" for column in TABLE.names}  # encoded already
                self._file = pq.ParquetWriter(self.folder / name, TABLE, compression=codecs, use_dictionary=False)
            self._file.write_table(pa.Table.from_pylist(self._rows, TABLE))
        self._part_bytes += self._bytes
        self._rows, self._bytes = [], 0
        if self._file is not None and self._part_bytes >= PART_BYTES:
            self._file.close()
            self._file, self._part_bytes = None, 0


class Images(AbstractContextManager["Images"]):
    """records.csv, and images/<thousand>/<record>-<id>.<ending>."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = (folder / "records.csv").open("w", encoding="utf-8", newline="")
        self._csv = csv.writer(self._file)
        self._csv.writerow(CSV)

    def add(self, record: Record, row: dict[str, Any]) -> None:
        name = ""
        if record.image is not None:
            name = file_of(record)
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(record.image)
        shown = row | {"file": name, "time": _iso(row["time"]), "revised_at": _iso(row["revised_at"])}
        self._csv.writerow(safe(shown[c]) if c in TEXT else shown[c] for c in CSV)

    def finish(self) -> None:
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()


def file_of(record: Record) -> str:
    """Where an image goes: its id comes from outside, so only harmless characters of it are in the name."""
    harmless = re.sub(r"[^A-Za-z0-9_-]+", "_", record.id)[:80].strip("_-")
    image = record.image or b""
    ending = suffix_of(image) or ".bin"
    name = f"{record.seq:012d}-{harmless}" if harmless else f"{record.seq:012d}"
    return f"images/{record.seq // IN_A_FOLDER:09d}/{name}{ending}"


def safe(text: str | None) -> str | None:
    """Text that no spreadsheet takes for a formula: a ' in front of what could be one (and of what begins with ')."""
    return f"'{text}" if text and text.lstrip(" ")[:1] in tuple(FORMULA) else text


def chosen_of(since: str | None, until: str | None, only: tuple[str, ...]) -> Chosen:
    """From the words of the command line. Raises ConfigError for what is neither number nor time."""
    bounds: dict[str, int] = {}
    for name, word, number, moment in (("since", since, "first", "since_ns"), ("until", until, "last", "until_ns")):
        if word is None:
            continue
        if re.fullmatch(r"[0-9]{1,12}", word):
            bounds[number] = int(word)
        else:
            bounds[moment] = _ns(word, name)
    return Chosen(**bounds, verdicts=only)


def _ns(word: str, name: str) -> int:
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", word):
            moment = datetime.combine(date.fromisoformat(word), datetime.min.time(), UTC)
            moment += timedelta(days=name == "until")
        else:
            moment = datetime.fromisoformat(word)
            moment = moment.replace(tzinfo=moment.tzinfo or UTC)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"--{name} takes a record number, a date (2026-05-31) or a time (2026-05-31T06:00), got {word!r}."
        ) from error
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def _iso(ns: int | None) -> str | None:
    """UTC to the nanosecond; a number that is no time of this calendar stays a number."""
    if ns is None:
        return None
    try:
        whole = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=ns // 10**9)
    except OverflowError:
        return str(ns)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{ns % 10**9:09d}Z"


class NewFolder:
    """A context that gives a temporary folder and, if all went well, renames it to `path`; else nothing is left."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.half = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")

    def __enter__(self) -> Path:
        try:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise ConfigError(f"{self.path}: is there already; name a new folder.")
            self.half.mkdir(parents=True)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written: {error}") from error
        return self.half

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self.half.replace(self.path)  # an empty folder gives way, one that holds something does not
        except OSError as failed:
            raise StoreError(f"{self.path}: cannot be written: {failed}") from failed
        finally:
            shutil.rmtree(self.half, ignore_errors=True)
        if isinstance(error, OSError):
            raise StoreError(f"{self.path}: cannot be written: {error}") from error
