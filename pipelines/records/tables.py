"""A result record as tables on standard output."""

import math
from collections.abc import Iterable, Mapping, Sequence

from ..console import show_blocks, show_table
from ..data.datasets import Task
from .beside import show_beside
from .continual_tables import continual_tables
from .figures import GAINS, METRIC_TITLES, shown
from .results import ADMITTED, METRICS, Result

Row = tuple[str, Mapping[str, float], Mapping[str, float] | None]  # name, figures with learning and without
REPORTED = {"drift": "mean of the drifts", "fewshot": "mean of the sessions"}  # what a protocol's reported figures are
HEADS = ("image\nAUROC", "image\nAP", "pixel\nAUROC", "pixel\nAP", "AUPRO", "pixel\nF1")  # METRICS, for 80 columns


def show(result: Result) -> None:
    """A row for each task, then their mean; images/s with learning, MB of state. Then what learning and papers say."""
    mean = result.mean
    rows = [(t.task, t.metrics, t.images_per_s, float(t.state_bytes)) for t in result.tasks]
    if len(rows) > 1:
        rows.append(("mean", mean, mean["images_per_s"], mean["state_bytes"]))
    body = [
        (name, *(shown(figures[m]) for m in METRICS), f"{speed:.1f}", f"{size / 1e6:.1f}")
        for name, figures, speed, size in rows
    ]
    if result.deviation:
        spread = ("deviation", *(shown(result.deviation[m]) for m in METRICS), None, None)
        body.append(spread)
    seeds = f"seeds {result.seeds[0]} to {result.seeds[-1]}" if result.seeds else f"seed {result.seed}"
    title = f"{result.protocol}: {result.method}, {result.size} pixels, {seeds}"
    show_table(title, ["task", *HEADS, "img/s", "MB"], body)
    if result.offline:
        show_gain(result)
    show_admitted(result)
    if result.continued:
        for table in continual_tables(result.continued):
            show_blocks(table.title, table.columns, table.rows, table.note)
    show_beside(result)


def show_admitted(result: Result) -> None:
    """Which patches of the streams were believed to be normal; nothing for a method that does not say so."""
    rows = [(t.task, *(shown(t.admitted[kind]) for kind in ADMITTED)) for t in result.tasks if t.admitted]
    if rows:
        show_table(
            "share of the stream's patches believed to be normal", ["task", "normal ones", "defective ones"], rows
        )


def show_gain(result: Result) -> None:
    """What learning changes, as means over tasks: the reported figures, then each part of theirs."""
    rows: list[Row] = [(REPORTED.get(result.protocol, "reported"), result.mean, result.offline)]
    rows += [(part.name, part.metrics, part.offline) for part in result.parts]
    body = [
        (name, *(text for m in GAINS for text in (shown(with_[m]), shown(without[m] if without else math.nan))))
        for name, with_, without in rows
    ]
    heads = [f"{METRIC_TITLES[m]}\n{how}" for m in GAINS for how in ("learning", "not")]
    show_table("with learning and without, means over tasks", ["", *heads], body)


def reasons(tasks: Sequence[Task], results: Iterable[Result]) -> list[str]:
    """TASK: why figures of it are left out, each reason once; the results are of these tasks, in their order."""
    found = (
        f"{t.task}: {note}"
        for r in results
        for task, t in zip(tasks, r.tasks, strict=True)
        for note in left_out(task, t.metrics)
    )
    return list(dict.fromkeys(found))


def left_out(task: Task, figures: Mapping[str, float]) -> list[str]:
    """Why figures of a task are not there, as far as its images are the reason; nothing where all of them are.

    The figures are asked too: what a protocol draws may have what the test set lacks.
    """
    bad = [sample for sample in task.test if sample.defect]
    if not bad:
        return ["no defective images: figures that need them are left out."]
    notes = []
    if len(bad) == len(task.test) and math.isnan(figures["image_auroc"]):
        notes.append("no good images to judge: image figures are left out.")
    bare = sum(not sample.masks for sample in bad)
    if bare and math.isnan(figures["pixel_auroc"]):
        few = f"{bare} of {len(bad)} defective images have no mask" if bare < len(bad) else "no masks"
        notes.append(f"{few}: pixel figures are left out.")
    return notes
