"""A protocol with several seeds: means, deviations and every seed's own figures in one record."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..data.datasets import Task
from ..records.continued import Continued, pooled_runs
from ..records.results import ADMITTED, METRICS, SeedRun, TaskResult, deviations, mean_figures, mean_part
from .continual import Continual
from .course import PerTask, Sink, nowhere
from .journal import Journal
from .judging import Features, Judged, Make, Reached, Told, onward


def over_seeds(
    protocols: Sequence[PerTask],
    make: Callable[[int], Make],
    task: Task,
    told: Callable[[int], Told],
    sink: Sink,
    features: Features | None = None,
    reached: Callable[[int], Reached] = lambda seed: onward,
) -> TaskResult:
    """Runs one task with each seed; images are embedded once for all of them.

    protocols: the same protocol, each with its seed. make: for a seed, what builds its detectors; `told`: for a
    seed, who hears of its progress. Every judgement goes to `sink`, under `seedN/...` where there are several.
    features: of the task, to share with other methods' runs. reached: for a seed, see `PerTask.run`.
    """
    many = len(protocols) > 1
    features = features or Features(make(protocols[0].seed), again=many, crop=protocols[0].crop)
    done = []
    for one in protocols:
        where = f"seed{one.seed}/" if many else ""

        def passed(name: str, judged: Judged, where: str = where) -> None:
            sink(where + name, judged)

        result, judged = one.run(make(one.seed), task, told(one.seed), features, passed, reached(one.seed))
        passed("", judged)
        done.append(result)
    return pooled([one.seed for one in protocols], done)


def sequence_over_seeds(
    protocols: Sequence[Continual],
    make: Callable[[int], Make],
    tasks: Sequence[Task],
    told: Callable[[int], Told],
    sink: Sink = nowhere,
    features: Features | None = None,
    journal: Callable[[int], Journal | None] = lambda seed: None,
    reached: Callable[[int], Reached] = lambda seed: onward,
) -> tuple[list[TaskResult], Continued]:
    """Runs a sequence with each seed, as `over_seeds` a task. journal: for a seed, where its steps are kept."""
    many = len(protocols) > 1
    features = features or Features(make(protocols[0].seed), protocols[0].keep, again=True, crop=protocols[0].crop)
    done = []
    for one in protocols:
        where = f"seed{one.seed}/" if many else ""

        def passed(name: str, judged: Judged, where: str = where) -> None:
            sink(where + name, judged)

        seed = one.seed
        done.append(one.run_all(make(seed), tasks, told(seed), features, passed, journal(seed), reached(seed)))
    seeds, columns = [one.seed for one in protocols], zip(*(results for results, _ in done), strict=True)
    return [pooled(seeds, list(column)) for column in columns], pooled_runs([continued for _, continued in done])


def pooled(seeds: Sequence[int], done: Sequence[TaskResult]) -> TaskResult:
    """One task's results with different seeds as one: means over seeds; those of one seed as they are."""
    first = done[0]
    if len(done) == 1:
        return first
    metrics = [one.metrics for one in done]
    offline = [one.offline for one in done if one.offline is not None]
    admitted = [one.admitted for one in done if one.admitted is not None]
    return replace(
        first,
        metrics=mean_figures(metrics),
        curve=_curve(done),
        ms_per_image={name: sum(one.ms_per_image[name] for one in done) / len(done) for name in first.ms_per_image},
        state_bytes=round(sum(one.state_bytes for one in done) / len(done)),
        offline=mean_figures(offline) if offline else None,
        parts=[mean_part([one.parts[n] for one in done]) for n in range(len(first.parts))],
        admitted=mean_figures(admitted, ADMITTED) if admitted else None,
        deviation=deviations(metrics),
        runs=[SeedRun(seed, one.metrics, one.offline) for seed, one in zip(seeds, done, strict=True)],
    )


def _curve(done: Sequence[TaskResult]) -> list[dict[str, float]]:
    """The mean at each point that all of them have."""
    by_images = [{point["images"]: point for point in one.curve} for one in done]
    shared = [images for images in by_images[0] if all(images in other for other in by_images)]
    rows = ((images, [one[images] for one in by_images]) for images in shared)
    return [
        {"images": images, **mean_figures([{m: p[m] for m in METRICS} for p in points])} for images, points in rows
    ]
