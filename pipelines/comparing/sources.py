"""Where records that are compared come from: files, and runs in MLflow with their artifact result.json."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...methods.errors import ConfigError, DataError
from ...platform.runs_read import SHORTEST, WHOLE, find_run, finished_runs, run_text
from ...platform.tracking import public
from ..records.results import MAX_BYTES, Result, parse_result, read_result

ARTIFACT = "result.json"
RUN_ID = re.compile(rf"[0-9a-f]{{{SHORTEST},{WHOLE}}}")
MOST = 500  # records of one experiment: more are no table that anybody reads


@dataclass(frozen=True)
class Source:
    """A record, and the file or the run (`run_id`) that it was read from."""

    result: Result
    file: Path | None = None
    run_id: str = ""

    def __str__(self) -> str:
        return f"run {self.run_id}" if self.run_id else str(self.file)

    @property
    def stem(self) -> str:
        """A short name: of a file without its folders and its end, of a run with the first digits of its id."""
        return f"run {self.run_id[:SHORTEST]}" if self.file is None else self.file.stem

    @property
    def identity(self) -> str:
        """Equal for what is the same source under two names."""
        return str(self) if self.file is None else str(self.file.resolve())


def read_file(file: Path) -> Source:
    """Raises DataError for a file that is no record."""
    return Source(read_result(file), file)


def is_run(word: str) -> bool:
    """Whether a word stands for a run: the start of its id, and there is no file of that name."""
    return bool(RUN_ID.fullmatch(word)) and not Path(word).exists()


def read_words(words: Sequence[str], tracking: str | None) -> list[Source]:
    """The records that words stand for, files or runs of the store `tracking`.

    Raises DataError for what is no record, ConfigError for a run where there is no store, and what `find_run` does.
    """
    return [_read_run(word, tracking) if is_run(word) else read_file(Path(word)) for word in words]


def read_experiment(name: str, tracking: str | None) -> tuple[list[Source], int]:
    """The records of an experiment's finished runs, oldest first, and how many of these runs have none.

    Raises DataError where none has one, or one is not a record; ConfigError where there are too many to compare.
    """
    store = stored(tracking)
    runs = finished_runs(store, name)
    found: list[Source] = []
    for run_id in runs:
        text = run_text(store, run_id, ARTIFACT, MAX_BYTES)
        if text is not None:
            found.append(Source(parse_result(text, f"run {run_id}: {ARTIFACT}"), run_id=run_id))
        if len(found) > MOST:
            raise ConfigError(f"--experiment {name}: more than {MOST} of its runs have a record; name some of them.")
    if not found:
        what = f"{len(runs)} finished runs, none of which keeps a {ARTIFACT}" if runs else "no finished run"
        raise DataError(f"--experiment {name}: {what}; there is nothing to compare in it.")
    return found, len(runs) - len(found)


def of_task(sources: Sequence[Source], name: str) -> list[Source]:
    """Those that have a task, without their others. Raises ConfigError where none has it, or it is of a sequence."""
    found = [one for one in sources if any(task.task == name for task in one.result.tasks)]
    if not found:
        known = sorted({task.task for one in sources for task in one.result.tasks})
        raise ConfigError(f"--task {name}: no record has it; they have {', '.join(known)}.")
    if any(one.result.continued for one in found):
        raise ConfigError(f"--task {name}: a record of the protocol continual is of a sequence; compare it whole.")
    return [
        replace(one, result=replace(one.result, tasks=[task for task in one.result.tasks if task.task == name]))
        for one in found
    ]


def stored(tracking: str | None) -> str:
    """The store's address. Raises ConfigError where there is none."""
    if tracking is None:
        raise ConfigError("runs are read from a tracking store, and --tracking (or EVERLINE_TRACKING) says none.")
    return tracking


def _read_run(word: str, tracking: str | None) -> Source:
    store = stored(tracking)
    run_id = find_run(store, word)
    text = run_text(store, run_id, ARTIFACT, MAX_BYTES)
    if text is None:
        raise DataError(f"run {run_id} of {public(store)} keeps no {ARTIFACT}: it is no evaluation, or a step of one.")
    return Source(parse_result(text, f"run {run_id}: {ARTIFACT}"), run_id=run_id)
