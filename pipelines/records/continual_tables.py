"""What a sequence of tasks cost and gained, as tables: the matrix, the measures drawn from it, memory and time."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .continued import BYTES, Continued
from .figures import Value, number, shown
from .report import Heat, Table

TITLES = {  # the figures that the thesis' tables have, in their order
    "image_auroc": "image AUROC",
    "image_f1": "image F1",
    "pixel_auroc": "pixel AUROC",
    "pixel_f1": "pixel F1",
    "pixel_ap": "pixel AP",
    "aupro": "AUPRO",
}
MEASURES = {
    "average": "average",
    "forgetting": "forgetting",
    "forgetting_relative": "forgetting\nrelative",
    "backward_transfer": "BWT",
    "forward_transfer": "FWT",
    "intransigence": "intran-\nsigence",
    "relative_gap": "relative\ngap",
}


def sequences(title: str, found: Mapping[str, Continued]) -> Table:
    """A row for each record, by what it is called: how good after the last step, what was lost, what it takes."""
    f1 = common_f1(found.values())
    heads = ["image\nAUROC", TITLES[f1].replace(" ", "\n"), "AUPRO", "forgetting", "intran-\nsigence", "gap\n%"]
    rows = []
    for name, one in found.items():
        gap = value(one, f1, "relative_gap")
        cells = [
            *(value(one, figure, "average").text(".3f") for figure in ("image_auroc", f1, "aupro")),
            value(one, f1, "forgetting").text("+.3f"),
            value(one, f1, "intransigence").text("+.3f"),
            Value(100 * gap.value, 100 * gap.deviation).text("+.1f"),
            shown(one.inference()),
            f"{one.training_s:.0f}",
            f"{one.inference_ms:.1f}",
            f"{additional_mb(one):.1f}",
            f1_per_mb(one, f1),
        ]
        rows.append([name, *cells])
    columns = [*heads, "task\nfound", "learning\ns", "ms/img", "MB", "F1\nper MB"]
    note = (
        f"After the last step. Forgetting (best value less the last), intransigence and gap are of the {TITLES[f1]}. "
        "Task found: the share of images that a method took for what they are. ms/img: backbone and score. "
        "MB: learned, and the images of the replay memory; F1 per MB counts the networks too."
    )
    return Table(title, ["", *columns], rows, " ".join([note, *shared_scopes(found)]))


def common_f1(every: Iterable[Continued]) -> str:
    """The F1 that all are spoken of by: of pixels, or of images where one has no other."""
    return "pixel_f1" if all(one.f1 == "pixel_f1" for one in every) else "image_f1"


def additional_mb(one: Continued) -> float:
    """Everything that is no network."""
    return (one.memory_bytes["learned"] + one.memory_bytes["replay"]) / 1e6


def shared_scopes(found: Mapping[str, Continued]) -> list[str]:
    """What `scopes` says: once where it is the same for all, else for each by its name."""
    said = {name: " ".join(scopes(one)) for name, one in found.items()}
    if len(set(said.values())) == 1:
        return [words for words in set(said.values()) if words]
    return [f"{name}: {words}" for name, words in said.items() if words]


def continual_tables(continued: Continued) -> list[Table]:
    """The matrix of the F1 and of image AUROC, the measures, the costs."""
    matrices = [heat(continued, name).table("learned") for name in (continued.f1, "image_auroc")]
    return [*matrices, measures(continued), costs(continued)]


def heat(continued: Continued, name: str, of: str = "") -> Heat:
    """The matrix of a figure: rows are steps, columns tasks. of: whose it is."""
    rows = [f"{n}. {' '.join(names)}".rstrip() for n, names in enumerate(step_names(continued), 1)]
    title = f"{TITLES[name]} of each task after each step"
    return Heat(f"{title}: {of}" if of else title, rows, continued.columns, continued.matrix[name])


def step_names(continued: Continued) -> list[list[str]]:
    """The tasks of each step; nothing where seeds had several orders, and a number says it all."""
    alike = all(one.steps == continued.steps for one in continued.runs)
    return [list(names) if alike else [] for names in continued.steps]


def measures(continued: Continued) -> Table:
    """A row for each figure, a column for each measure; what is not defined is a dash."""
    rows = [
        [title, *(value(continued, name, measure).text(_form(measure)) for measure in MEASURES)]
        for name, title in TITLES.items()
    ]
    notes = ["±: the deviation over seeds."] if continued.deviation else []
    return Table("after the last step", ["", *MEASURES.values()], rows, " ".join([*notes, *scopes(continued)]))


def costs(continued: Continued) -> Table:
    """What was known of tasks when judging, memory, time, and how many images' task was found out."""
    heads = [*(f"{name}\nMB" for name in BYTES), "training\ns", "inference\nms"]
    cells = [
        *(f"{continued.memory_bytes[name] / 1e6:.2f}" for name in BYTES),
        f"{continued.training_s:.1f}",
        f"{continued.inference_ms:.2f}",
    ]
    found = continued.inference()
    if not math.isnan(found):
        heads, cells = [*heads, "task\nfound"], [*cells, f"{found:.3f}"]
    return Table("what it costs", ["scenario", *heads], [[continued.scenario, *cells]])


def value(continued: Continued, name: str, measure: str) -> Value:
    """A measure of a figure, with its deviation over seeds."""
    spread = math.nan if continued.deviation is None else continued.deviation[name][measure]
    return Value(continued.measures[name][measure] + 0.0, spread)  # no negative zero


def scopes(continued: Continued) -> Iterator[str]:
    """Over how many tasks the figures are means that not all tasks have."""
    one = (continued.runs or [continued])[0]
    counts: dict[int, list[str]] = {}
    for name, title in TITLES.items():
        counts.setdefault(sum(not math.isnan(cell) for cell in one.matrix[name][-1]), []).append(title)
    for count, titles in counts.items():
        if 0 < count < len(one.columns):
            yield f"Over the {count} of {len(one.columns)} tasks that have it: {', '.join(titles)}."


def f1_per_mb(continued: Continued, name: str) -> str | None:
    """The average of an F1 for each MB of networks, of what was learned and of the replay memory."""
    size = continued.bytes / 1e6
    return shown(continued.measures[name]["average"] / size if size > 0 else math.nan, ".3g")


def plain(one: Continued) -> dict[str, Any]:
    """The measures, trends and costs of a record as plain values, for JSON."""

    def numbers(of: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
        return {name: {key: number(at) for key, at in row.items()} for name, row in of.items()}

    return {
        "f1": one.f1,
        "measures": numbers(one.measures),
        "deviation": numbers(one.deviation or {}),
        "trend": {name: [number(at) for at in one.trend(name)] for name in one.matrix},
        "memory_bytes": dict(one.memory_bytes),
        "training_s": number(one.training_s),
        "inference_ms": number(one.inference_ms),
        "task_found": number(one.inference()),
    }


def _form(measure: str) -> str:
    return "+.3f" if measure.endswith("transfer") else ".3f"
