"""What the demo shows at its end: a table on the terminal and report.html."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...platform.settings import Fleet
from ...platform.tracking import public
from ..console import OUT, show_table
from ..records.curves import Curve
from ..records.report import Gallery, Picture, Report, Table, write_report

SHOWN = 6  # pictures in each part of a gallery

# label, and where it stands in a line's summary
ROWS = (
    ("images streamed", "images_streamed"),
    ("defects among them", "defects_streamed"),
    ("images learned", "images_learned"),
    ("held back from learning", "not_admitted"),
    ("images/s, learning included", "images_per_s"),
    ("AUROC over HTTP, held-out", "auroc_http"),
    ("good cells rejected", "false_rejects"),
    ("defects rejected", "defects_found"),
    ("latency p50, ms", "latency_p50"),
    ("latency p99, ms", "latency_p99"),
    ("versions", "versions"),
    ("bytes of state", "state_bytes"),
    ("killed after image", "killed_after"),
    ("seconds to the next answer", "recovery_s"),
    ("lost", "lost"),
    ("learned twice", "learned_twice"),
    ("same bits as undisturbed", "resumed_identical"),
    ("rolled back", "rollback"),
)


@dataclass(frozen=True)
class Judged:
    """A held-out image as the server judged it. `image`: uint8 (S, S, 3); `map`: float32 (S, S)."""

    name: str
    defect: bool
    answer: Mapping[str, Any]
    image: NDArray[np.uint8]
    map: NDArray[np.float32]


def choose(labels: NDArray[np.bool_], answers: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Which held-out images to show: the best, the worst and the wrongly judged, by title."""
    scores = np.array([answer["score"] for answer in answers], float)
    rejected = np.array([answer["verdict"] == "reject" for answer in answers])
    order = np.argsort(scores, kind="stable")
    found = {
        "the defects it is surest of": [i for i in order[::-1] if labels[i]],
        "the good cells it is surest of": [i for i in order if not labels[i]],
        "good cells that it rejects": [i for i in order[::-1] if not labels[i] and rejected[i]],
        "defects that it misses": [i for i in order if labels[i] and not rejected[i]],
    }
    return {title: [int(i) for i in chosen[:SHOWN]] for title, chosen in found.items()}


def show_summary(summary: Mapping[str, Any], fleet: Fleet, out: Path) -> None:
    """The table, and where to go from here."""
    names = list(summary["lines"])
    show_table("everline demo", ["", *names], _rows(summary))
    OUT.print(
        f"\nReport:   {out / 'report.html'}\nFigures:  {out / 'summary.json'}\n"
        f"Server:   everline serve --fleet {shlex.quote(str(out / 'fleet.yaml'))}\n"
        f"MLflow:   mlflow ui --backend-store-uri {shlex.quote(public(fleet.tracking))}\n"
        f"{summary['seconds']:.0f} s in all.",
        highlight=False,
        soft_wrap=True,
    )


def write_demo_report(
    summary: Mapping[str, Any], judged: Mapping[str, Mapping[str, Sequence[Judged]]], path: Path
) -> None:
    """`judged`: line -> title -> images. Raises DataError where the file cannot be written."""
    lines = summary["lines"]
    curve = Curve(
        "Image AUROC on held-out cells over the images seen",
        "images seen",
        "image AUROC",
        {name: [(float(n), float(a)) for n, a in line["auroc_curve"]] for name, line in lines.items()},
        y_range=(0.5, 1.0),
        markers={f"{n} killed": float(line["killed_after"]) for n, line in lines.items() if line["killed_after"]},
    )
    galleries = [gallery for name, parts in judged.items() for gallery in _galleries(name, parts)]
    report = Report(
        "everline demo",
        "Two lines started without a single image. Each inspected and learned a stream of real solar cells, most of "
        "them good, published versions as it went, and was then asked over HTTP about held-out cells that it never "
        "learned from.\n\nHeatmaps: the brighter, the stranger; one scale for all images of a line.",
        tables=[Table("What came of it", ["", *lines], [tuple(row) for row in _rows(summary)])],
        curves=[curve],
        galleries=galleries,
        footer=f"{summary['seconds']:.0f} seconds in all. Images: elpv-dataset, CC BY-NC-SA 4.0.",
    )
    write_report(report, path)


def _galleries(name: str, parts: Mapping[str, Sequence[Judged]]) -> list[Gallery]:
    """One for each title that has images; all of a line share one colour scale."""
    shown = {title: [_picture(one) for one in images] for title, images in parts.items() if images}
    scale = Gallery(name, list(chain.from_iterable(shown.values()))).range()
    return [Gallery(f"{name}: {title}", pictures, scale=scale) for title, pictures in shown.items()]


def _rows(summary: Mapping[str, Any]) -> list[list[Any]]:
    lines = [_flat(line) for line in summary["lines"].values()]
    return [[label, *(line.get(key) for line in lines)] for label, key in ROWS]


def _flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line's summary with one plain cell for each row of the table."""
    back = line.get("rollback")
    same = line.get("resumed_identical")
    return {
        **line,
        "versions": len(line["versions"]),
        "latency_p50": line["latency_ms"]["p50"],
        "latency_p99": line["latency_ms"]["p99"],
        "resumed_identical": None if same is None else "yes" if same else "NO",
        "rollback": f"{back['from']} to {back['to']}{'' if back['ok'] else ' FAILED'}" if back else None,
    }


def _picture(one: Judged) -> Picture:
    return Picture(
        image=one.image,
        map=one.map,
        caption=one.name,
        score=float(one.answer["score"]),
        threshold=one.answer["threshold"],
        verdict=one.answer["verdict"],
        truth="defect" if one.defect else "ok",
    )
