"""What `everline bench` keeps in its folder, so that it can be stopped and go on.

OUT/PROTOCOL/METHOD.json        the record of all tasks, made from
OUT/PROTOCOL/METHOD/TASK.json   the record of one task, a part
OUT/PROTOCOL/METHOD.tracked     a checksum: this record went to this MLflow store
OUT/data/TASK.sha256            a checksum of the images and masks that the parts of a task were made from
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..methods.errors import DataError
from .console import ERR
from .datasets import Task
from .files import Whole
from .plan import Names, Plan
from .results import Result, read_result, write_result
from .trial import Trial


@dataclass(frozen=True)
class Parts:
    """The folder `out`."""

    out: Path

    def record(self, names: Names) -> Path:
        """Where a method's record under a protocol is kept."""
        return self.out / names[0] / f"{names[1]}.json"

    def part(self, names: Names, task: Task) -> Path:
        """Where one task's part of a record is kept."""
        return self.out / names[0] / names[1] / f"{_file_name(task)}.json"

    def check_data(self, tasks: Sequence[Task]) -> None:
        """Notes which images each task has. Raises DataError where parts of others are there already."""
        for task in tasks:
            file, found = self.out / "data" / f"{_file_name(task)}.sha256", fingerprint(task)
            parts = any((folder / f"{_file_name(task)}.json").exists() for folder in self.out.glob("*/*/"))
            before = file.read_text("utf-8").strip() if file.exists() else None
            if parts and before != found:
                raise DataError(f"{self.out}: made from other images of the name {task.name}; name another --out.")
            _write(file, found)

    def has(self, names: Names, trial: Trial, task: Task) -> bool:
        """Whether a task's part is there and is this trial's. What is another's, or no record, is made anew."""
        file = self.part(names, task)
        if not file.exists():
            return False
        try:
            found = read_result(file)
        except DataError as error:
            ERR.print(f"{error} It is made anew.", highlight=False, markup=False)
            return False
        return [one.task for one in found.tasks] == [task.name] and _made_by(found) == _made_by(trial.result([]))

    def merge(self, plan: Plan, tasks: Sequence[Task], dataset: str | None) -> dict[Names, Result]:
        """Writes every method's record from its parts."""
        found = {}
        for names, trial in plan.items():
            parts = [read_result(self.part(names, task)).tasks[0] for task in tasks]
            found[names] = trial.result(parts, dataset)
            write_result(found[names], self.record(names))
        return found

    def is_tracked(self, names: Names, result: Result, store: str) -> bool:
        """Whether this very record went to this store."""
        file = self._tracked(names)
        return file.exists() and file.read_text("utf-8").strip() == _checksum(store, result.dumps())

    def set_tracked(self, names: Names, result: Result, store: str) -> None:
        """Notes that it did."""
        _write(self._tracked(names), _checksum(store, result.dumps()))

    def _tracked(self, names: Names) -> Path:
        return self.record(names).with_suffix(".tracked")


def fingerprint(task: Task) -> str:
    """A checksum of a task's images and masks and of what they are to it, wherever they lie."""
    rows = [["train", path.name, _digest(path)] for path in task.train]
    for sample in task.test:
        rows.append([sample.kind, sample.path.name, _digest(sample.path), *(_digest(mask) for mask in sample.masks)])
    return _checksum(json.dumps(rows))


def _made_by(result: Result) -> str:
    """What decides the figures of a record, as text."""
    names = ("protocol", "method", "params", "options", "seed", "seeds", "size", "everline_version")
    return json.dumps({name: getattr(result, name) for name in names}, sort_keys=True)


def _file_name(task: Task) -> str:
    """A data set's table may name a task as it likes; a file's name, with something behind it, stays in its folder."""
    return quote(task.name, safe=" ")


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error}") from error


def _checksum(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _write(file: Path, text: str) -> None:
    with Whole(file) as half:
        half.write_text(f"{text}\n", "utf-8")
