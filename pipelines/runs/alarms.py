"""How soon a drift is seen, and whether a run of defects is told apart, on folders of real images.

    python -m everline.pipelines.runs.alarms ../shared/data/mtd

A line is imitated: a detector learns, is calibrated and then judges a stream, of which the watch (platform/drift.py)
sees what a record would hold. First normal images, then drifted ones, or normal ones with many real defects among
them.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...methods.detector import Detector
from ...methods.registry import build
from ...platform.calibration import Calibration
from ...platform.drift import REFERENCE, Watch, moments
from ...platform.images import prepare
from ...platform.record import Record
from ..data.datasets import read_folder
from ..data.drift import Drift

LEARN, CALIBRATE, BEFORE, AFTER, ORDERS = 0.25, 0.25, 30, 80, 5
DRIFTS = ("brightness=20", "brightness=50", "brightness=-30", "noise=10", "blur=1", "blur=2", "cast=15", "cast=30")
Image = tuple[Tensor, list[float]]  # its features and moments
DEFECTS = 0.5  # share of defects in a run of them


@dataclass(frozen=True)
class Seen:
    """How often of how many orders each alarm came, and after how many images, in the middle."""

    what: str
    orders: int
    drift: tuple[int, ...]
    defects: tuple[int, ...]
    early: int  # orders with an alarm before anything had changed
    rejects: float  # share after the change

    def __str__(self) -> str:
        def said(found: Sequence[int]) -> str:
            return f"{len(found)} of {self.orders - self.early}" + (
                f", after {int(np.median(found))}" if found else ""
            )

        told = f"drift {said(self.drift):18} defects {said(self.defects):18}"
        return f"{self.what:15} {told} early {self.early}  rejects {self.rejects:.0%}"


def measure(folder: Path, method: str = "padim", size: int = 128) -> list[Seen]:
    """Every drift, a run of defects, and nothing at all. Raises DataError."""
    task, detector = read_folder(folder), build(method, size=size)
    good = [*task.train, *(s.path for s in task.test if not s.defect)]
    bad = [_embedded(detector, s.path) for s in task.test if s.defect]
    clean = [_embedded(detector, path) for path in good]
    tails = {"nothing": clean}
    for text in DRIFTS:
        tails[text] = [_embedded(detector, path, Drift.parse(text)) for path in good]
    orders = [np.random.default_rng(seed).permutation(len(good)) for seed in range(ORDERS)]
    lines = [_learned(method, size, clean, order) for order in orders]
    found = [_seen(name, clean, tail, None, orders, lines) for name, tail in tails.items()]
    return [*found, _seen(f"defects {DEFECTS:.0%}", clean, clean, bad, orders, lines)]


def _embedded(detector: Detector, path: Path, drift: Drift | None = None) -> Image:
    pixels = prepare(path.read_bytes(), detector.size)
    if drift is not None:
        pixels = torch.from_numpy(drift(pixels.numpy(), path))
    features = detector.embed(pixels[None])
    return features, moments(pixels, features)


def _learned(method: str, size: int, clean: Sequence[Image], order: np.ndarray) -> tuple[Detector, Calibration]:
    learn, calibrate = round(LEARN * len(order)), round(CALIBRATE * len(order))
    detector = build(method, size=size)
    for n in order[:learn]:
        detector.learn(clean[n][0])
    scores = [float(detector.score(clean[n][0]).image[0]) for n in order[learn : learn + calibrate]]
    return detector, Calibration.of(scores, 0.01)


def _seen(
    what: str,
    clean: Sequence[Image],
    tail: Sequence[Image],
    bad: Sequence[Image] | None,
    orders: Sequence[np.ndarray],
    lines: Sequence[tuple[Detector, Calibration]],
) -> Seen:
    drift, defects, early, rejects = [], [], 0, []
    for seed, (order, line) in enumerate(zip(orders, lines, strict=True)):
        rest = order[round((LEARN + CALIBRATE) * len(order)) :]
        first, last = rest[: REFERENCE + BEFORE], rest[REFERENCE + BEFORE :][:AFTER]
        chance, watch = np.random.default_rng(seed), Watch(0.01)
        states = []
        for seq, n in enumerate([*first, *last]):
            image = clean[n] if seq < len(first) else tail[n]
            if bad is not None and seq >= len(first) and chance.random() < DEFECTS:
                image = bad[int(chance.integers(len(bad)))]
            record = _record(seq, image, *line)
            watch.take(record)
            states.append(watch.state)
            rejects += [record.verdict == "reject"] if seq >= len(first) else []
        before, after = states[: len(first)], states[len(first) :]
        if any(state != "none" for state in before):
            early += 1
            continue
        drift += [after.index("drift") + 1] if "drift" in after else []
        defects += [after.index("defects") + 1] if "defects" in after else []
    return Seen(what, len(orders), tuple(drift), tuple(defects), early, float(np.mean(rejects)))


def _record(seq: int, image: Image, detector: Detector, calibration: Calibration) -> Record:
    score = float(detector.score(image[0]).image[0])
    p_value, verdict = calibration.p_value(score), calibration.verdict(score)
    data = {"moments": image[1]}
    return Record(kind="image", id=str(seq), seq=seq, p_value=p_value, verdict=verdict, data=data)


def main(folders: Sequence[str]) -> None:
    """Prints a table for every folder."""
    torch.set_num_threads(1)
    for folder in folders:
        print(folder, *measure(Path(folder)), sep="\n")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
