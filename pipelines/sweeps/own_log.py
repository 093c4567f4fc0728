"""A line's log as data for a sweep: earlier images to learn from, later ones to judge by, in MVTec layout.

    OUT/train/good/NUMBER.png          normal images of the earlier part, named by their records' numbers
    OUT/test/good, OUT/test/defect     of the later part: normal, and a defect by an operator's word
    OUT/test/rejected                  of the later part: a defect in the guard's opinion only
    OUT/test/synthetic                 made up, where there are too few others (platform/synthetic.py)
    OUT/ground_truth/synthetic         masks of these, where all defects are made up
    OUT/log.json                       what was taken, by whose word, and the checksum of every file

Figures on labels that are the guard's own opinion measure agreement with the versions that gave those verdicts, not
truth: `LogTask.counts` and `LogTask.caveat` say how many there are.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...methods.errors import ConfigError, DataError, ImageError, StoreError
from ...platform.images import suffix_of
from ...platform.log import LogReader
from ...platform.synthetic import spoil
from ..data.datasets import Task, read_folder
from ..data.fingerprint import digest
from .own_labels import GUARD, NOBODY, OPERATOR, Label, read_labels

FORMAT = 1
INDEX = "log.json"
MAX_INDEX = 2**28  # bytes
SYNTHETIC = "synthetic"
LEAST_DEFECTS = 10  # among the images to judge, below which some are made up
MADE = 50  # at most, and no more than there are normal images to judge


@dataclass(frozen=True)
class LogTask:
    """learn, judge: what is known of the images of `task`. made: synthetic defects. left_out: images without label."""

    task: Task
    learn: tuple[Label, ...]
    judge: tuple[Label, ...]
    made: int
    left_out: int

    @property
    def watermark(self) -> int:
        """Number of the last record that may be learned from."""
        return self.learn[-1].seq

    @property
    def counts(self) -> dict[str, int]:
        """Images by whose word they are labelled, the synthetic ones, and those left out."""
        found = Counter(label.by for label in (*self.learn, *self.judge))
        return {name: found[name] for name in (OPERATOR, GUARD, NOBODY)} | {
            SYNTHETIC: self.made,
            "left_out": self.left_out,
        }

    @property
    def caveat(self) -> str:
        """What the figures are worth, in words; empty where an operator labelled everything."""
        found = Counter((label.by, label.defect) for label in self.judge)
        opinions = found[GUARD, False] + found[GUARD, True]
        says = []
        if opinions:
            says.append(
                f"{opinions} of {len(self.judge)} labels to judge by are the guard's own opinion: figures on them "
                "measure agreement with the versions that gave those verdicts, not truth"
            )
        if unseen := found[NOBODY, False]:
            says.append(f"{unseen} images to judge by were admitted before the line had a version: nobody looked")
        if self.made:
            says.append(
                f"{self.made} defects are synthetic: they rank methods, and do not show how many real ones are found"
            )
        return "; ".join(says)


@dataclass(frozen=True)
class _Plan:
    """What an export consists of, before any image is read: file without its suffix, by record; sources to spoil."""

    files: Mapping[int, str]
    sources: tuple[int, ...]
    plain: Mapping[str, Any]
    masks: bool


def export(
    reader: LogReader,
    out: Path,
    *,
    since: int | None = None,
    most: int | None = None,
    share: float = 0.5,
    least_defects: int = LEAST_DEFECTS,
    synthetic: bool = True,
    seed: int = 0,
    bits: int = 0,
) -> LogTask:
    """Writes a log's labelled images under `out`, whole or not at all; what is there already and equal is kept.

    since: from this record on. most: the newest so many labelled images only. share: of the normal images, those to
    learn from, the earliest; everything from the next on is to judge by. least_defects: fewer than that are filled
    up with synthetic ones, or refused where `synthetic` is False. seed: of the synthetic ones. bits: of the line.
    Raises ConfigError for values out of range, DataError where there are too few images, or `out` holds other things.
    """
    if not 0 < share < 1 or (most is not None and most < 2) or least_defects < 1:
        wrong = f"share={share!r}, most={most!r}, least_defects={least_defects!r}"
        raise ConfigError(f"export: share is in (0, 1), most at least 2, least_defects at least 1; got {wrong}.")
    labels, left_out = read_labels(reader.records(images=False))
    kept = [label for label in labels if since is None or label.seq >= since][-(most or len(labels)) :]
    learn, judge = _split(kept, share, reader)
    made = _to_make(judge, least_defects, synthetic, reader)
    plan = _plan(reader, learn, judge, made, seed, left_out, bits)
    _write(reader, Path(os.path.abspath(out)), plan, seed, bits)
    return LogTask(read_folder(out), tuple(learn), tuple(judge), made, left_out)


def reopen(out: Path) -> LogTask:
    """What `export` wrote, however the log has grown since. Raises DataError where it is not there, or was changed."""
    plain = _checked(out, f"{out}: there are no images of a log in it to go on with.")
    try:
        labels = [Label(**{name: row[name] for name in Label.__dataclass_fields__}) for row in plain["images"]]
        learn = [label for label, row in zip(labels, plain["images"], strict=True) if row["file"].startswith("train/")]
        return LogTask(
            read_folder(out), tuple(learn), tuple(labels[len(learn) :]), len(plain["synthetic"]), plain["left_out"]
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{out / INDEX}: not the index of a log's images: {error}") from error


def sources(normal: Sequence[int], count: int) -> tuple[int, ...]:
    """Numbers of `count` normal images, evenly spread, that synthetic defects are made of."""
    return tuple(normal[n] for n in np.linspace(0, len(normal) - 1, count).round().astype(int)) if count else ()


def defect_of(data: bytes, seq: int, seed: int, bits: int = 0) -> tuple[bytes, bytes]:
    """The synthetic defect, and its mask, that is made of the image of record `seq`. bits: of the line."""
    return spoil(data, (seed * 1_000_003 + seq) % 2**63, bits)


def _split(labels: Sequence[Label], share: float, reader: LogReader) -> tuple[list[Label], list[Label]]:
    """Normal ones to learn from, and all that came after them. Raises DataError."""
    normal = [label for label in labels if not label.defect]
    count = round(share * len(normal))
    if not 0 < count < len(normal):
        raise DataError(
            f"{reader.folder}: {len(normal)} normal images among {len(labels)} labelled ones are too few to learn "
            f"from a share of {share:g} and to judge by the rest."
        )
    first = normal[count].seq
    return normal[:count], [label for label in labels if label.seq >= first]


def _to_make(judge: Sequence[Label], least: int, synthetic: bool, reader: LogReader) -> int:
    """How many defects are to be made up. Raises DataError where that is not wanted."""
    defects = sum(label.defect for label in judge)
    if defects >= least:
        return 0
    if not synthetic:
        raise DataError(
            f"{reader.folder}: {defects} defects among {len(judge)} images to judge by, {least} are needed; give "
            "feedback on more, take more records, or leave out --no-synthetic to have some made up."
        )
    return min(MADE, len(judge) - defects)


def _plan(
    reader: LogReader, learn: Sequence[Label], judge: Sequence[Label], made: int, seed: int, left_out: int, bits: int
) -> _Plan:
    files = {label.seq: f"train/good/{label.seq:012}" for label in learn}
    files |= {label.seq: f"test/{_kind(label)}/{label.seq:012}" for label in judge}
    chosen = sources([label.seq for label in judge if not label.defect], made)
    rows = [asdict(label) | {"file": files[label.seq]} for label in (*learn, *judge)]
    plain = {"format": FORMAT, "line": reader.folder.name, "seed": seed, "images": rows, "synthetic": list(chosen)}
    plain |= {"left_out": left_out, **({"bits": bits} if bits else {})}
    return _Plan(files, chosen, plain, masks=not any(label.defect for label in judge))


def _kind(label: Label) -> str:
    if not label.defect:
        return "good"
    return "defect" if label.by == OPERATOR else "rejected"


def _write(reader: LogReader, out: Path, plan: _Plan, seed: int, bits: int) -> None:
    """All files and log.json under another name, then one rename. Raises StoreError, DataError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _check_same(out, plan)
    half = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        half.mkdir(parents=True)
        _write_images(reader, half, plan, seed, bits)
        found = {str(path.relative_to(half)): digest(path) for path in sorted(half.rglob("*")) if path.is_file()}
        (half / INDEX).write_text(json.dumps({**plan.plain, "files": found}, indent=1), "utf-8")
        half.rename(out)
    except OSError as error:
        raise StoreError(f"{out}: the images of the log cannot be written: {error}") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return None


def _write_images(reader: LogReader, root: Path, plan: _Plan, seed: int, bits: int) -> None:
    """One pass over the log, from the first image that is wanted to the last."""
    spoilt = set(plan.sources)
    for record in reader.records(after=min(plan.files) - 1):
        if record.seq not in plan.files:
            if record.seq > max(plan.files):
                return
            continue
        if record.image is None:
            raise DataError(f"{reader.folder}: record {record.seq} has no image.")
        _save(root / (plan.files[record.seq] + _suffix(record.image, record.seq)), record.image)
        if record.seq in spoilt:
            image, mask = defect_of(record.image, record.seq, seed, bits)
            _save(root / f"test/{SYNTHETIC}/{record.seq:012}.png", image)
            if plan.masks:
                _save(root / f"ground_truth/{SYNTHETIC}/{record.seq:012}_mask.png", mask)


def _save(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _suffix(data: bytes, seq: int) -> str:
    if not (suffix := suffix_of(data)):
        raise ImageError(f"record {seq}: not an image of a kind that everline accepts.")
    return suffix


def _check_same(out: Path, plan: _Plan) -> None:
    """Raises DataError where a folder is anything but this export, unchanged."""
    other = f"{out}: there is something else in it; name a folder that is empty or not there yet."
    if _checked(out, other) != plan.plain:
        raise DataError(other)


def _checked(out: Path, other: str) -> dict[str, Any]:
    """The index of an export, less its checksums, every file of which is as it was written. Raises DataError."""
    try:
        if not out.is_dir() or (out / INDEX).stat().st_size > MAX_INDEX:
            raise DataError(other)
        found: dict[str, Any] = json.loads((out / INDEX).read_text("utf-8"))
        files = found.pop("files")
        there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} - {INDEX}
        if there != files.keys():
            raise DataError(other)
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(other) from error
    changed = [name for name, known in files.items() if digest(out / name) != known]
    if changed:
        raise DataError(f"{out}: {changed[0]} is not what was written there; remove the folder, or name another.")
    return found
