"""A sweep and its trials as MLflow takes them: what its compare and parallel-coordinates pages need, without everline.

of the sweep   params    methods, memory, objective, samples, ... as asked for; data (names of the tasks)
               metrics   of the best configuration: objective, image_auroc, ..., state_bytes, ms_per_image, and
                         held_out/FIGURE; trials, failed, stopped, seconds
               artifacts outcome.json, report.html
of a trial     params    as of an evaluation's run; memory, the size it was tried with; what was searched
               metrics   objective, seconds, and as of an evaluation's run, but `ms_per_image` is backbone, score and
                         learn together (each of them stands under TASK/ms_per_image). Of a trial that was stopped
                         the curve alone: its figures are those of a part of the stream, and would not compare
               tags      status, configuration, task, phase; error of one that failed, whose run is FAILED
               artifacts result.json, curve.svg, heatmaps.png, error.txt, as far as there are such
"""

import json
import math
from dataclasses import replace

from ... import __version__
from ...platform.runs import Run
from ..records.curves import picture as drawn
from ..records.results import METRICS
from ..runs.tracked import flat, title, to_run, under
from .diagrams import of_trial
from .objectives import measures
from .outcome import Outcome
from .outcome_rows import Row
from .record import COMPLETE, SEARCH, TrialRecord
from .settings import SweepSettings

SWEEP, TRIAL = "everline.sweep", "everline.trial"  # tags: which sweep, and the key of a trial
OWN = ("methods", "memory", "samples", "seeds", "objective", "search", "holdout", "reduction", "generation", "seed")


def experiment(protocol: str) -> str:
    """The experiment in which sweeps of a protocol and their trials compare."""
    return f"everline/sweep/{protocol}"


def of_sweep(settings: SweepSettings, name: str) -> Run:
    """The sweep as it begins. name: tells it from every other."""
    asked = {one: getattr(settings, one) for one in OWN} | {"given": settings.given, "protocol": settings.options}
    data = {"data": ", ".join(settings.images), "dataset": settings.data.get("dataset")}
    return Run(
        experiment=experiment(settings.protocol),
        name=f"sweep of {', '.join(settings.methods)}",
        params=flat(asked | data),
        tags={
            "everline.kind": "sweep",
            "everline.version": __version__,
            "everline.protocol": settings.protocol,
            SWEEP: name,
        },
    )


def of_trial_run(settings: SweepSettings, record: TrialRecord, picture: bytes | None) -> Run:
    """A trial's run, without its parent."""
    item, result = record.item, record.result
    made = Run("", f"{item.method} on {item.task or 'all tasks'}") if result is None else to_run(result)
    asked = {**settings.fixed(item.method, item.memory), **item.params}
    data = item.task or ", ".join(settings.images)
    given = flat({"method": item.method, "data": data, "memory": item.memory} | asked)
    name = f"{item.number} {made.name if result is None else title(result)}"
    tags = {"status": record.status, "configuration": str(item.configuration), "task": item.task or "all"}
    tags |= {"phase": item.phase, "everline.kind": "trial", "everline.version": __version__, TRIAL: record.key}
    return replace(
        made,
        experiment=experiment(settings.protocol),
        name=name if item.phase == SEARCH else f"{name} ({item.phase})",
        params=given | dict(made.params),
        tags=tags | {"everline.protocol": settings.protocol} | ({"error": record.error} if record.error else {}),
        metrics=_metrics(record, made) | {"seconds": record.seconds},
        artifacts=dict(made.artifacts) | _artifacts(record, picture),
        children=[],
    )


def of_outcome(settings: SweepSettings, outcome: Outcome, report_html: str) -> Run:
    """What a sweep gains at its end."""
    counts = {"trials": len(outcome.trials), "failed": len(outcome.errors), "stopped": outcome.stopped}
    text = json.dumps(outcome.to_json(), indent=2, allow_nan=False) + "\n"
    return Run(
        experiment=experiment(settings.protocol),
        name="",
        metrics={**counts, "seconds": outcome.seconds, **_best(outcome.best)},
        artifacts={"outcome.json": text, "report.html": report_html},
    )


def _metrics(record: TrialRecord, made: Run) -> dict[str, float]:
    """Figures of a complete trial, those that a sweep speaks of being its own; none of another."""
    if record.status != COMPLETE or record.result is None:
        return {}
    own = {name: value for name, value in made.metrics.items() if not name.startswith("ms_per_image/")}
    return own | measures(record.result) | {"objective": record.objective}


def _artifacts(record: TrialRecord, picture: bytes | None) -> dict[str, str | bytes]:
    curve = of_trial(record)
    found: dict[str, str | bytes] = {} if curve is None else {"curve.svg": drawn(curve)}
    found |= {} if picture is None else {"heatmaps.png": picture}
    return found | ({"error.txt": f"{record.error}\n"} if record.error else {})


def _best(best: Row | None) -> dict[str, float]:
    if best is None:
        return {}
    held = best["held_out"] or {"objective": math.nan, "metrics": dict.fromkeys(METRICS, math.nan)}
    found = {name: best[name] for name in ("objective", "state_bytes", "ms_per_image")} | best["metrics"]
    return found | under("held_out", {"objective": held["objective"], **held["metrics"]})
