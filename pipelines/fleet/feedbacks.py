"""`python -m everline.pipelines.fleet.feedbacks`: false rejects before and after twenty words, in another light.

A line learns normal images of a folder. Then the light shifts: images that it never saw are judged, and not learned;
its stream goes on in the new light, and an operator says `ok` to its false rejects, until enough was said; the same
images are judged again. Beside it a line that nobody tells anything sees the same stream. For both is said after how
many images a version was current that has learned the new light.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch

from ...methods.errors import DataError
from ...platform.fold import FIRST_SNAPSHOT
from ...platform.images import prepare
from ...platform.line import Line
from ...platform.online import OK
from ...platform.pictures import png
from ...platform.settings import LineSettings
from ..console import ERR, json_option, launch, show_table, write_json
from ..data.datasets import Sample, Task, read_folder
from ..data.drift import Drift
from ..files import FilePath
from ..options import ManyValues, gather, set_option
from .undisturbed import Kept

CALM = 0.7  # share of the normal images to learn from that come before the light shifts


@dataclass(frozen=True)
class Figures:
    """Shares. false_rejects: of normal images; found: of defects. clean: in the light of before."""

    folder: str
    seed: int
    told: int  # words that there was occasion for
    images: int  # of the stream in the new light, which both lines saw
    clean_false_rejects: float
    before_false_rejects: float
    after_false_rejects: float
    untold_false_rejects: float  # of the line that nobody told anything
    clean_found: float
    before_found: float
    after_found: float
    untold_found: float
    told_version: int | None  # images in the new light until a version that learned 25 of them or more was current
    untold_version: int | None
    untold_learning: int  # images in the new light whose verdict was `learning`


@click.command(cls=ManyValues)
@click.option("--data", "folders", multiple=True, required=True, type=FilePath(), metavar="DIR...",
    help="Folders in MVTec layout.",
)  # fmt: skip
@click.option("--drift", "drift_text", default="cast=30", show_default=True, help="What happens to the light.")
@click.option("--words", type=click.IntRange(1, 1000), default=20, show_default=True, help="That an operator says.")
@click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Orders of the images.")
@click.option("--method", default="coreset", show_default=True)
@set_option
@click.option("--rate", type=click.FloatRange(0.001, 0.5), default=0.05, show_default=True, help="The promised one.")
@json_option
def feedbacks(
    folders: tuple[Path, ...],
    drift_text: str,
    words: int,
    seeds: int,
    method: str,
    settings: tuple[str, ...],
    rate: float,
    json_file: Path | None,
) -> None:
    """Measure what an operator's words, and a new version, do to false rejects and defects found in another light."""
    drift = Drift.parse(drift_text)
    line = LineSettings(method=method, params=gather(settings, {}), false_reject_rate=rate)
    rows = []
    for folder in folders:
        task = read_folder(folder)
        for seed in range(seeds):
            ERR.print(f"{task.name}, order {seed} ...")
            rows.append(measured(task, line, drift, words, seed))
    asked = {"drift": drift_text, "words": words, "method": method, "params": line.params, "rate": rate}
    write_json({**asked, "runs": [asdict(row) for row in rows]}, json_file)
    if str(json_file) != "-":
        states = ("clean", "before", "after", "untold")
        for what in ("false_rejects", "found"):
            cells = [
                [f"{row.folder} {row.seed}", *(getattr(row, f"{s}_{what}") for s in states), row.told] for row in rows
            ]
            show_table(what.replace("_", " "), ["folder, order", *states, "words"], cells)
        cells = [[f"{r.folder} {r.seed}", r.told_version, r.untold_version, r.untold_learning, r.images] for r in rows]
        heads = ["folder, order", "told", "untold", "untold: learning", "images in all"]
        show_table("images until a version of the new light", heads, cells)


def measured(task: Task, settings: LineSettings, drift: Drift, words: int, seed: int) -> Figures:
    """One order. Raises DataError where the line has no version when the light shifts."""
    order = np.random.default_rng(seed).permutation(len(task.train))
    stream = [task.train[n] for n in order]
    calm, shifted = stream[: round(CALM * len(stream))], stream[round(CALM * len(stream)) :]
    lines = []
    with TemporaryDirectory(prefix="everline-") as folder:
        for told in (words, 0):
            line = Line(f"told{told}", settings, Path(folder), Kept())
            for path in calm:
                line.inspect(path.read_bytes(), f"calm-{path.name}")
            line.settle()
            if line.scorer is None:
                raise DataError(f"{task.name}: {len(calm)} images gave no version; take more, or a higher --rate.")
            clean, before = judged(line, task.test, "clean"), judged(line, task.test, "before", drift)
            said, learning, sooner = 0, 0, None
            learned = line.fold.learner.images_learned
            for n, path in enumerate(shifted):
                id = f"shifted-{path.name}"
                verdict = line.inspect(encoded(path, settings, drift), id).verdict
                learning += verdict == "learning"
                if sooner is None and line.scorer.detector.images_learned >= learned + FIRST_SNAPSHOT:
                    sooner = n
                if verdict == "reject" and said < told:
                    line.feedback(id, OK)
                    said += 1
                    if said == words:  # the other line is to see no more of the stream than this one
                        shifted = shifted[: shifted.index(path) + 1]
                        break
            lines.append((clean, before, judged(line, task.test, "after", drift), said, sooner, learning))
            line.close()
    (clean, before, told_after, said, told_version, _), (*_, untold, _, untold_version, learning) = lines
    shares = {"clean": clean, "before": before, "after": told_after, "untold": untold}
    named: dict[str, Any] = {
        "told_version": told_version,
        "untold_version": untold_version,
        "untold_learning": learning,
    }
    for name, (wrong, found) in shares.items():
        named |= {f"{name}_false_rejects": wrong, f"{name}_found": found}
    return Figures(task.name, seed, said, len(shifted), **named)


def judged(line: Line, samples: Sequence[Sample], name: str, drift: Drift | None = None) -> tuple[float, float]:
    """Share of the normal images, and of the defects, that are rejected; the line learns nothing from it."""

    def share(part: Iterable[Sample]) -> float:
        answers = []
        for sample in part:
            data = sample.path.read_bytes() if drift is None else encoded(sample.path, line.settings, drift)
            id = f"{name}-{sample.kind}-{sample.path.name}"
            answers.append(line.inspect(data, id, learn=False).verdict == "reject")
        return float(np.mean(answers)) if answers else float("nan")

    return share(s for s in samples if not s.defect), share(s for s in samples if s.defect)


def encoded(path: Path, settings: LineSettings, drift: Drift) -> bytes:
    """The image in another light, at the size that the detector sees, as PNG."""
    pixels = prepare(path.read_bytes(), int(settings.params.get("size", 224)))
    return png(drift(pixels.numpy(), path).transpose(1, 2, 0))


if __name__ == "__main__":
    torch.set_num_threads(1)
    launch(feedbacks)
