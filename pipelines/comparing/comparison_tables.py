"""A comparison as tables: what is read on the terminal, on a page and in docs/results.md."""

from collections.abc import Mapping

from ..records.continual_tables import TITLES
from ..records.figures import FIGURES, GAINS, METRIC_TITLES, Figure, admitted, metric, of_part, still
from ..records.report import Table
from ..records.results import ADMITTED, METRICS
from ..records.tables import REPORTED
from .comparison import Comparison
from .comparison_continual import continual
from .comparison_continual import overview as overview_of_sequences
from .comparison_curves import curve_table

OVERVIEW = {  # head of a column, narrow enough for 80 columns with deviations
    "image\nAUROC": FIGURES["image_auroc"],
    "AUPRO": FIGURES["aupro"],
    "pixel\nAUROC": FIGURES["pixel_auroc"],
    "ms/img": FIGURES["ms_per_image"],
    "MB": FIGURES["state_mb"],
}
BY_TASK = (*FIGURES.values(), *GAINS.values())  # of a sequence, all tasks cost the same


def tables(comparison: Comparison) -> list[Table]:
    """The overview, what the protocol adds to it, each figure by task, and the curve."""
    more = {"drift": drift, "fewshot": fewshot, "continual": continual}.get(comparison.protocol)
    every = [metric(TITLES[name], name) for name in TITLES if name in METRICS] if more is continual else BY_TASK
    figures = [figure for figure in every if comparison.common(figure)]
    return [
        overview_of_sequences(comparison) if more is continual else overview(comparison),
        *(more(comparison) if more else ()),
        *(by_task(comparison, figure) for figure in figures),
        *(() if more is continual else curve_table(comparison)),
    ]


def overview(comparison: Comparison) -> Table:
    """A row for each record: how good, how fast, how large."""
    title = f"{comparison.setting}, {comparison.size} pixels: {comparison.scope}"
    notes = ["ms/img: to score and learn, aside from the backbone. MB: state."]
    if comparison.protocol in REPORTED:
        notes.append(f"Of each task, the {REPORTED[comparison.protocol]}.")
    if any(record.result.seeds for record in comparison.records):
        notes.append("±: the deviation over seeds.")
    return summary(comparison, title, OVERVIEW, " ".join(notes))


def drift(comparison: Comparison) -> list[Table]:
    """Image AUROC and AUPRO without drift, and under each drift offline and online."""
    tasks = [record.tasks[name] for record in comparison.records for name in comparison.shared]
    kinds = [kind for kind in dict.fromkeys(part.name for task in tasks for part in task.parts) if kind != "none"]
    note = "Offline: learned clean, judged drifted. Online: learned and judged drifted."
    made = []
    for name in GAINS:
        heads = {"none": of_part("none", "none", name)}
        for kind in kinds:
            heads[f"{kind}\noffline"] = of_part(kind, kind, name, still)
            heads[f"{kind}\nonline"] = of_part(kind, kind, name)
        made.append(summary(comparison, f"{METRIC_TITLES[name]} under drift: {comparison.scope}", heads, note))
    return made


def fewshot(comparison: Comparison) -> list[Table]:
    """What learning from the stream changes, and which of its patches were believed to be normal."""
    heads: dict[str, Figure] = {}
    for name in GAINS:
        title = METRIC_TITLES[name]
        heads |= {
            f"{title}\nlearning": metric(title, name),
            f"{title}\nnot learning": metric(title, name, still),
            f"{title}\ngain": GAINS[name],
        }
    for name in GAINS:
        title = f"whole stream\n{METRIC_TITLES[name]}"
        heads[title] = of_part(title, "whole stream", name)
        heads[f"{title}\nnot learning"] = of_part(title, "whole stream", name, still)
    for name in ADMITTED:
        heads[f"admitted\n{name}"] = admitted(name)
    note = "Not learning: the same detector on the same stream, which learned the shots alone."
    if any(comparison.common(admitted(name)) for name in ADMITTED):
        note += (
            " Admitted: the share of the stream's normal and of its defective patches that was believed to be normal."
        )
    return [summary(comparison, f"learning from the stream: {comparison.scope}", heads, note)]


def summary(comparison: Comparison, title: str, heads: Mapping[str, Figure], note: str = "") -> Table:
    """A row for each record, a column for the mean of each figure; says which are over fewer tasks than are shared."""
    counts: dict[int, list[str]] = {}
    for head, figure in heads.items():
        counts.setdefault(len(comparison.common(figure)), []).append(one_line(head))
    fewer = [f"Over {n} tasks: {', '.join(c)}." for n, c in counts.items() if 0 < n < len(comparison.shared)]
    rows = [
        [record.label, *(comparison.mean(record, figure).text(figure.form) for figure in heads.values())]
        for record in comparison.records
    ]
    return Table(title, ["record", *heads], rows, " ".join(filter(None, [note, *fewer])))


def by_task(comparison: Comparison, figure: Figure) -> Table:
    """A row for each task, a column for each record; then the mean over the tasks that all records have."""
    records, common = comparison.records, comparison.common(figure)
    rows = []
    for name in comparison.tasks:
        own = ([record.tasks[name]] if name in record.tasks else [] for record in records)
        rows.append([name, *(figure.mean(tasks).text(figure.form) for tasks in own)])
    if len(common) > 1:
        title = "mean" if len(common) == len(comparison.tasks) else f"mean of {len(common)} that all have"
        rows.append([title, *(comparison.mean(record, figure).text(figure.form) for record in records)])
    return Table(figure.title, ["task", *(record.label for record in records)], rows)


def one_line(head: str) -> str:
    """A head of several lines in one."""
    return " ".join(head.split())
