"""`everline sweep --publish LINE`: the winner, learned anew, as the line's candidate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...methods.errors import ConfigError, DataError
from ...platform.settings import Fleet, read_fleet
from ..console import ERR, progress, teller
from ..data.datasets import Task
from .outcome import Outcome
from .publish import propose
from .settings import SweepSettings


def line_and_task(line: str, fleet_file: Path, settings: SweepSettings, tasks: Sequence[Task]) -> tuple[Fleet, Task]:
    """The fleet, and the task that the line is to learn: the only one, or that of its name. Before anything is run.

    Raises UnknownLine, ConfigError where it is not clear what the line should learn.
    """
    fleet = read_fleet(fleet_file)
    fleet.line(line)
    if settings.together:
        raise ConfigError("--publish: a line learns one product; a sweep under the protocol continual has no winner.")
    named = [task for task in tasks if task.name == line] or tasks
    if len(named) > 1:
        names = ", ".join(task.name for task in tasks)
        raise ConfigError(f"--publish {line}: the sweep has several tasks ({names}); give the line's folder alone.")
    return fleet, named[0]


def propose_winner(
    outcome: Outcome,
    task: Task,
    line: str,
    fleet: Fleet,
    out: Path,
    *,
    watermark: int = -1,
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains the best configuration on the task's normal images and registers it; says which version it is.

    Raises DataError where no trial is complete; as `propose`.
    """
    row = winner_of(outcome, task)
    tags = {"sweep": str(out), "sweep_objective": f"{row['objective']:.6g}", **_held_out(row)}
    with progress() as bars:
        bars.disable = quiet
        version = propose(
            outcome.settings, row["method"], row["searched"], task, line, fleet,
            memory=row["memory"], watermark=watermark, tags=tags, told=teller(bars, f"{line}: {row['method']}"),
        )  # fmt: skip
    ERR.print(
        f"{line}: version {version} is its candidate; `everline promote {line}` decides whether it becomes current.",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    return {"line": line, "version": version, "configuration": row["configuration"]}


def winner_of(outcome: Outcome, task: Task) -> Mapping[str, Any]:
    """The row of the best trial on a task. Raises DataError where none is complete."""
    row = outcome.best_by_task.get(task.name)
    if row is None:
        raise DataError(f"{task.name}: no trial was completed, so there is no winner; see the errors above.")
    return row


def _held_out(row: Mapping[str, Any]) -> dict[str, str]:
    found = row["held_out"]
    return {} if not found else {"sweep_held_out": f"{found['objective']:.6g}"}
