"""Results in MLflow: one run each, in one experiment per protocol, so that MLflow's own pages compare them.

params    method, data (names of the tasks), every parameter of the method, the protocol's options as protocol/NAME,
          seeds where there are several
metrics   means over tasks under their plain names: image_auroc, ..., images_per_s, state_bytes; ms_per_image/STEP,
          offline/FIGURE (without learning), deviation/FIGURE (over seeds), admitted/KIND (shares of patches),
          part/NAME/FIGURE. The same of each task but its parts under TASK/. A figure that does not exist (NaN) is
          left out.
          curve/TASK/FIGURE: at each number of images learned, as MLflow's step
          of the protocol continual: continual/FIGURE/MEASURE, continual/deviation/..., continual/memory_bytes/NAME,
          continual/training_s, continual/inference_ms, and continual/trend/FIGURE by step (see `tracked_steps.py`)
children  of the protocol continual: a run for each step
artifact  result.json, the record itself
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ...methods.params import table
from ...methods.registry import METHODS
from ...platform.runs import Run, legal, record_run
from ...platform.settings import STORE, absolute_tracking, default_tracking
from ...platform.tracking import prepare_tracking, public
from ..protocols.protocols import PROTOCOLS
from ..records.continued import Continued
from ..records.results import METRICS, TIMES, Result, TaskResult
from .tracked_steps import kept, of_step, trends

GROUPS = (
    "ms_per_image",
    "offline",
    "deviation",
    "admitted",
    "part",
    "curve",
    "continual",
)  # prefixes that no task may have
Plain = str | int | float | bool
Curve = list[tuple[int, float]]  # images learned, figure
Command = Callable[..., Any]


def _address(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The option's value as an absolute address; None for `none`."""
    if value == "none":
        return None
    here = Path.cwd()
    return default_tracking((here / STORE).resolve()) if value is None else absolute_tracking(value, here)


def tracking_to(purpose: str) -> Callable[[Command], Command]:
    """Adds --tracking to a command; `purpose`: what the store is for, in its help."""
    return click.option(
        "--tracking", metavar="URI", envvar="EVERLINE_TRACKING", show_envvar=True, callback=_address,
        help=f"MLflow store that {purpose}: sqlite:///FILE, a server's address, or none.  "
        f"[default: sqlite:///{STORE}/mlflow.db]",
    )  # fmt: skip


tracking_option = tracking_to("the result goes to as well")


def prepare(uri: str, protocol: str) -> None:
    """Makes sure, before the work, that results of a protocol can be tracked. Raises TrackingError, ConfigError."""
    prepare_tracking(uri, experiment(protocol))


def track(result: Result, uri: str) -> str:
    """Records a result in a store made ready with `prepare`; returns the run's id. Raises TrackingError, NoSpace."""
    return record_run(uri, to_run(result))


def landed(result: Result, uri: str, run_id: str) -> str:
    """Where a result is to be found in MLflow, in a line for people."""
    return landed_in(experiment(result.protocol), uri, run_id)


def landed_in(name: str, uri: str, run_id: str) -> str:
    """The same of a run of an experiment of that name."""
    see = public(uri) if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
    return f"MLflow: run {run_id} of experiment {name}; to see it: {see}"


def experiment(protocol: str) -> str:
    """The experiment in which a protocol's results compare."""
    return f"everline/{protocol}"


def to_run(result: Result) -> Run:
    """A result as MLflow takes it."""
    labels = labelled([task.task for task in result.tasks])
    metrics = summary(result)
    series: dict[str, Curve] = {}
    for label, task in zip(labels, result.tasks, strict=True):
        metrics |= under(label, figures(task))
        series |= under(f"curve/{label}", curves(task))
    run = Run(
        experiment=experiment(result.protocol),
        name=title(result),
        params=settings(result),
        tags={
            "everline.kind": "evaluation",
            "everline.version": result.everline_version,
            "everline.protocol": result.protocol,
        },
        metrics=metrics,
        series=series,
        artifacts={"result.json": result.dumps()},
    )
    return run if result.continued is None else _with_steps(run, result.continued)


def _with_steps(run: Run, continued: Continued) -> Run:
    """What a sequence adds to a run, and a run for each of its steps."""
    return replace(
        run,
        metrics={**run.metrics, **under("continual", kept(continued))},
        series={**run.series, **under("continual", trends(continued))},
        children=[of_step(run, continued, n, labelled(continued.columns)) for n in range(len(continued.steps))],
    )


def settings(result: Result) -> dict[str, Plain]:
    """What was asked for, by name."""
    record = result.to_json()
    own = {name: record.get(name) for name in ("method", "dataset", "backbone", "size", "seed", "seeds")}
    data = ", ".join(task.task for task in result.tasks)
    return flat(result.params) | flat({"protocol": result.options}) | flat(own) | {"data": data}


def title(result: Result) -> str:
    """METHOD on DATA, and what is not as usual: NAME=VALUE of the method's parameters and the protocol's options."""
    method, protocol = METHODS.get(result.method), PROTOCOLS.get(result.protocol)
    usual = {name: default for name, _, default, _ in table(method)} if method else {}
    given = [(flat(result.params), flat(usual)), (flat(result.options), flat(protocol().options if protocol else {}))]
    changed = [f"{name}={value}" for own, other in given for name, value in own.items() if value != other.get(name)]
    if result.seeds:
        changed.append(f"seeds={result.seeds[0]}..{result.seeds[-1]}")
    data = result.tasks[0].task if len(result.tasks) == 1 else f"{len(result.tasks)} tasks"
    return " ".join([f"{result.method} on {data}", *changed])


def summary(result: Result) -> dict[str, float]:
    """Means over tasks."""
    count = len(result.tasks)
    times = {name: sum(task.ms_per_image[name] for task in result.tasks) / count for name in TIMES}
    found = result.mean | under("ms_per_image", times)
    found |= under("offline", result.offline) | under("deviation", result.deviation)
    found |= under("admitted", result.admitted)
    for part in result.parts:
        found |= under(f"part/{legal(part.name)}", {**part.metrics, **under("offline", part.offline)})
    return found


def figures(task: TaskResult) -> dict[str, float]:
    """A task's."""
    found = {**task.metrics, "images_per_s": task.images_per_s, "state_bytes": task.state_bytes}
    found |= under("ms_per_image", task.ms_per_image) | under("admitted", task.admitted)
    return found | under("offline", task.offline) | under("deviation", task.deviation)


def curves(task: TaskResult) -> dict[str, Curve]:
    """Each figure's curve; none where it is a single point, which is the figure itself."""
    if len(task.curve) < 2:
        return {}
    return {name: [(int(point["images"]), point[name]) for point in task.curve] for name in METRICS}


def labelled(names: Sequence[str]) -> list[str]:
    """The tasks' names as MLflow takes them: different ones stay so, and none is a group's."""
    found: list[str] = []
    for name in names:
        label = legal(name)
        while label in GROUPS or label in found:
            label += "_"
        found.append(label)
    return found


def under(prefix: str, values: Mapping[str, Any] | None) -> dict[str, Any]:
    """PREFIX/NAME for every name; nothing for None."""
    return {f"{prefix}/{name}": value for name, value in (values or {}).items()}


def flat(values: Mapping[str, Any]) -> dict[str, Plain]:
    """Values in values as NAME/NAME, lists as they are typed (`4,8,16`); None and empty lists are left out."""
    found: dict[str, Plain] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= under(legal(name), flat(value))
        elif isinstance(value, list | tuple):
            found |= {legal(name): ",".join(map(str, value))} if value else {}
        elif value is not None:
            found[legal(name)] = value
    return found
