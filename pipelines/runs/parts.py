"""What `everline bench` keeps in its folder, so that it can be stopped and go on.

OUT/PROTOCOL/METHOD.json        the record of all tasks, made from
OUT/PROTOCOL/METHOD/TASK.json   the record of one task, a part
OUT/PROTOCOL/METHOD/+.json      in place of parts: the record of a sequence, as it was run
OUT/PROTOCOL/METHOD/+/          its finished steps, while it runs
OUT/PROTOCOL/METHOD.tracked     a checksum: this record went to this MLflow store
OUT/data/TASK.sha256            a checksum of the images and masks that the parts of a task were made from
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ...methods.errors import DataError
from ..console import ERR
from ..data.datasets import Task
from ..data.fingerprint import checksum, fingerprint
from ..files import Whole
from ..protocols.trial import Trial
from ..records.results import Result, read_result, write_result
from .plan import Names, Plan
from .references import with_references


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
            sequences = before is not None and any(self.out.glob("*/*/+*"))
            if (parts or sequences) and before != found:
                raise DataError(f"{self.out}: made from other images of the name {task.name}; name another --out.")
            _write(file, found)

    def whole(self, names: Names) -> Path:
        """Where the record of a sequence is kept; no task's file has this name, in which `+` becomes %2B."""
        return self.out / names[0] / names[1] / "+.json"

    def steps(self, names: Names, trial: Trial) -> Path:
        """Where the finished steps of a sequence are kept while it runs; other settings have another place."""
        return self.whole(names).with_suffix("") / checksum(_made_by(trial.result([])))[:16]

    def forget_steps(self, names: Names) -> None:
        """A sequence is done, and its record written."""
        shutil.rmtree(self.whole(names).with_suffix(""), ignore_errors=True)

    def has(self, names: Names, trial: Trial, task: Task) -> bool:
        """Whether a task's part is there and is this trial's. What is another's, or no record, is made anew."""
        return self._has(self.part(names, task), trial, [task])

    def has_all(self, names: Names, trial: Trial, tasks: Sequence[Task]) -> bool:
        """As `has`, of a sequence of these tasks."""
        return self._has(self.whole(names), trial, tasks)

    def _has(self, file: Path, trial: Trial, tasks: Sequence[Task]) -> bool:
        if not file.exists():
            return False
        try:
            found = read_result(file)
        except DataError as error:
            ERR.print(f"{error} It is made anew.", highlight=False, markup=False)
            return False
        same = [one.task for one in found.tasks] == [task.name for task in tasks]
        return same and _made_by(found) == _made_by(trial.result([]))

    def merge(self, plan: Plan, tasks: Sequence[Task], dataset: str | None) -> dict[Names, Result]:
        """Writes every method's record from its parts; of sequences, with what single and joint models say of it."""
        found = {}
        for names, trial in plan.items():
            if trial.together:
                whole = read_result(self.whole(names))
                found[names] = trial.result(whole.tasks, dataset, whole.continued)
            else:
                found[names] = trial.result([read_result(self.part(names, task)).tasks[0] for task in tasks], dataset)
        found = dict(zip(found, with_references(list(found.values())), strict=True))
        for names, result in found.items():
            write_result(result, self.record(names))
        return found

    def is_tracked(self, names: Names, result: Result, store: str) -> bool:
        """Whether this very record went to this store."""
        file = self._tracked(names)
        return file.exists() and file.read_text("utf-8").strip() == checksum(store, result.dumps())

    def set_tracked(self, names: Names, result: Result, store: str) -> None:
        """Notes that it did."""
        _write(self._tracked(names), checksum(store, result.dumps()))

    def _tracked(self, names: Names) -> Path:
        return self.record(names).with_suffix(".tracked")


def _made_by(result: Result) -> str:
    """What decides the figures of a record, as text."""
    names = ("protocol", "method", "params", "options", "seed", "seeds", "size", "everline_version")
    return json.dumps({name: getattr(result, name) for name in names}, sort_keys=True)


def _file_name(task: Task) -> str:
    """A data set's table may name a task as it likes; a file's name, with something behind it, stays in its folder."""
    return quote(task.name, safe=" ")


def _write(file: Path, text: str) -> None:
    with Whole(file) as half:
        half.write_text(f"{text}\n", "utf-8")
