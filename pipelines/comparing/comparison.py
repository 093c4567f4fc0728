"""Result records that compare: what they are called, which tasks they share, their means, all of it as plain JSON."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...methods.errors import ConfigError, DataError
from ..protocols.continual import Continual
from ..records.continual_tables import plain
from ..records.figures import FIGURES, GAINS, Figure, Value, number
from ..records.results import Result, TaskResult
from ..runs.references import with_references
from .labels import changed, labels, options
from .sources import Source, read_file


@dataclass(frozen=True)
class Record:
    """One result, with what it is called here and where it came from."""

    label: str
    source: Source
    result: Result

    @cached_property
    def tasks(self) -> dict[str, TaskResult]:
        """The tasks by name, in the record's order."""
        return {task.task: task for task in self.result.tasks}

    def to_json(self, means: dict[str, Value]) -> dict[str, Any]:
        """Plain values; None for a figure that does not exist."""
        result = self.result
        return {
            "label": self.label,
            "file": None if self.source.run_id else str(self.source),
            "run": self.source.run_id or None,
            "method": result.method,
            "changed": {name: result.params[name] for name in changed(result)},
            "options": dict(result.options),
            "seeds": list(result.seeds) or [result.seed],
            "everline_version": result.everline_version,
            "mean": {name: number(mean.value) for name, mean in means.items()},
            "deviation": {name: number(mean.deviation) for name, mean in means.items()},
            "tasks": {
                name: {key: number(figure.of(task)) for key, figure in KEYS.items()}
                for name, task in self.tasks.items()
            },
            **({"continual": plain(result.continued)} if result.continued else {}),
        }


@dataclass(frozen=True)
class Comparison:
    """Records of one protocol, one size and the same data, of which each may have more tasks than all share."""

    records: Sequence[Record]

    @classmethod
    def read(cls, files: Sequence[Path]) -> "Comparison":
        """Of records in files. Raises DataError for a file that is no record, and what `of` does."""
        return cls.of([read_file(file) for file in files])

    @classmethod
    def of(cls, sources: Sequence[Source]) -> "Comparison":
        """Raises ConfigError for records that do not compare, DataError for one that cannot be."""
        results = [source.result for source in sources]
        check(results, sources)
        results = with_references(results)
        made = zip(labels(results, sources), sources, results, strict=True)
        return cls([Record(label, source, result) for label, source, result in made])

    @cached_property
    def tasks(self) -> list[str]:
        """All tasks, in the order first met."""
        return list(dict.fromkeys(name for record in self.records for name in record.tasks))

    @cached_property
    def shared(self) -> list[str]:
        """The tasks that every record has: means are over these."""
        return [name for name in self.tasks if all(name in record.tasks for record in self.records)]

    def common(self, figure: Figure) -> list[str]:
        """The shared tasks that have a figure in every record; a record that has it nowhere does not count."""
        found = [{n for n in self.shared if not math.isnan(figure.of(record.tasks[n]))} for record in self.records]
        return [name for name in self.shared if any(found) and all(name in names for names in found if names)]

    def mean(self, record: Record, figure: Figure) -> Value:
        """A record's mean over the tasks in `common`."""
        return figure.mean([record.tasks[name] for name in self.common(figure)])

    @property
    def protocol(self) -> str:
        """The protocol of all of them."""
        return self.records[0].result.protocol

    @property
    def size(self) -> int:
        """The side of their images, in pixels."""
        return self.records[0].result.size

    @property
    def setting(self) -> str:
        """The protocol with those of its options in which the records agree."""
        every = [options(record.result) for record in self.records]
        agreed = [f"{name}={value}" for name, value in every[0].items() if all(o.get(name) == value for o in every)]
        return " ".join([self.protocol, *agreed])

    @property
    def scope(self) -> str:
        """What the means are over, in words."""
        if self.shared == self.tasks:
            return f"task {self.tasks[0]}" if len(self.tasks) == 1 else f"mean over {len(self.tasks)} tasks"
        return f"mean over the {len(self.shared)} of {len(self.tasks)} tasks that all have"

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        means = [{name: self.mean(record, figure) for name, figure in KEYS.items()} for record in self.records]
        return {
            "protocol": self.protocol,
            "size": self.size,
            "shared_tasks": self.shared,
            "records": [record.to_json(mean) for record, mean in zip(self.records, means, strict=True)],
        }


KEYS = FIGURES | {f"gain_{name}": figure for name, figure in GAINS.items()}


def check(results: Sequence[Result], sources: Sequence[Source]) -> None:
    """Raises ConfigError for records that do not compare, DataError for one that has a task twice."""
    twice = [str(one) for n, one in enumerate(sources) if one.identity in {other.identity for other in sources[:n]}]
    if twice:
        raise ConfigError(f"compare: {twice[0]} is given twice.")
    for what in ("protocol", "size", "dataset"):
        values = sorted({str(getattr(result, what) or "folders of your own") for result in results})
        if len(values) > 1:
            raise ConfigError(f"compare: the records differ in {what} ({', '.join(values)}); compare like with like.")
    for result, source in zip(results, sources, strict=True):
        if len({task.task for task in result.tasks}) < len(result.tasks):
            raise DataError(f"{source}: two of its tasks have one name; this is no result record of everline.")
        if (result.protocol == Continual.name) != (result.continued is not None):
            raise DataError(f"{source}: only a record of the protocol continual has a sequence, and each of them has.")
    check_data(results, sources)


def check_data(results: Sequence[Result], sources: Sequence[Source]) -> None:
    """Raises ConfigError where no task is shared, or one has other numbers of images under the same options."""
    if not set.intersection(*({task.task for task in result.tasks} for result in results)):
        known = ", ".join(sorted({task.task for result in results for task in result.tasks}))
        raise ConfigError(f"compare: no task is in all records; --task NAME compares those of one ({known}).")
    seen: dict[tuple[str, str], tuple[int, int, Source]] = {}
    for result, source in zip(results, sources, strict=True):
        alike = "" if result.continued else str(options(result))  # no option of a sequence changes how many there are
        for task in result.tasks:
            train, test, first = seen.setdefault((task.task, alike), (task.n_train, task.n_test, source))
            if (train, test) != (task.n_train, task.n_test):
                raise ConfigError(
                    f"compare: {task.task} has {train} images to learn and {test} to judge in {first}, "
                    f"{task.n_train} and {task.n_test} in {source}: other data of the same name; "
                    "compare like with like."
                )
