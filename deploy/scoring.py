"""What a replica computes: one frozen backbone for all lines that name the same one, and a version for each line.

On a GPU images of different lines go through it together, as many as wait (`Queue`). On a CPU they go one at a time:
there a batch gives other bits than single images, and takes longer at the usual size (docs/results.md).
"""

import base64
import io
import logging
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..methods.backbones import Backbone
from ..methods.detector import Detector, FeatureDetector
from ..methods.errors import TrackingError, UnknownVersion
from ..platform.drift import moments
from ..platform.images import decode
from ..platform.line import Scorer, embed_image
from ..platform.pictures import map_png, overlay, png, shrink

log = logging.getLogger("everline.scoring")
OVERLAY_SIDE = 1024  # pixels of an overlay's longer side, at most
MAPS = {"png": "map_png", "overlay": "map_overlay", "raw": "map_npy"}  # kind of a map: its name in an answer


@dataclass
class Counter:
    """One line as this replica knows it. `scorer` is only ever replaced, never changed."""

    name: str
    embedder: Detector  # the learner's twin that never learns: makes the features that the line takes
    versions: Any  # platform.versions.Versions, or a double
    threads: int
    device: str
    scorer: Scorer | None = None
    problem: str = ""  # why the current version could not be looked up or loaded; empty when all is well


@dataclass(frozen=True)
class Seen:
    """What this replica made of an image."""

    features: np.ndarray  # (1, C, h, w) for the line to learn from
    moments: list[float]  # by which the line sees a drift
    scored: dict[str, Any] | None  # None while the line has no version
    map: dict[str, Any] | None  # one of MAPS' names (base64) and map_range, where asked for and possible


def look(counter: Counter) -> None:
    """Brings a line's scorer up to the alias `current`. A version that cannot be had leaves the old one at work."""
    try:
        number = counter.versions.current()
        now = counter.scorer.version if counter.scorer else None
        if number != now:
            counter.scorer = None if number is None else _ready(counter, number)
            log.info("line %s: scoring with version %s now (was %s)", counter.name, number, now)
        counter.problem = ""
    except Exception as error:  # noqa: BLE001 - whatever it is, the watch over the other lines must go on
        if not counter.problem:  # once, not twice a second
            known = isinstance(error, TrackingError)
            log.log(logging.WARNING if known else logging.ERROR, "line %s: keeps its version: %s", counter.name, error)
        counter.problem = str(error) or type(error).__name__


@dataclass(frozen=True, eq=False)
class Job:
    """An image that waits to be seen. pixels: uint8 (3, S, S) of its `data`. want_map: one of MAPS, or empty."""

    counter: Counter
    data: bytes
    pixels: Tensor
    want_map: str = ""
    done: "Future[Seen]" = field(default_factory=Future)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for images that may go through a backbone together."""
        return *self.counter.embedder.embedding, self.counter.threads


class Queue:
    """Images of all lines that wait for the thread that computes, in the order in which they came."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._lock = threading.Lock()

    def put(self, job: Job) -> None:
        """`work` has to be called once for each."""
        with self._lock:
            self._jobs.append(job)

    def work(self) -> None:
        """Sees the first that waits, and what may go with it; nothing where that has been done. Blocking."""
        with self._lock:
            some = self._first()
            self._jobs = [job for job in self._jobs if job not in some]
        see([job for job in some if job.done.set_running_or_notify_cancel()])

    def clear(self) -> None:
        """Whoever waits is told that nothing comes any more."""
        with self._lock:
            left, self._jobs = self._jobs, []
        for job in left:
            job.done.cancel()

    def _first(self) -> list[Job]:
        """The first, and as many of its kind as a pass may take."""
        if not self._jobs:
            return []
        first = self._jobs[0]
        return [job for job in self._jobs if job.kind == first.kind][: first.counter.embedder.together]


def see(jobs: Sequence[Job]) -> None:
    """Embeds images of one kind in one pass, and scores each with its own line's version. Blocking."""
    if not jobs:
        return
    counter = jobs[0].counter
    torch.set_num_threads(counter.threads)  # of this thread; as the line would embed it, to the last bit
    try:
        features = counter.embedder.embed(torch.stack([job.pixels for job in jobs]))
    except Exception as error:  # noqa: BLE001 - whoever waits is to hear of it
        for job in jobs:
            job.done.set_exception(error)
        return
    for job, one in zip(jobs, features.split(1), strict=True):
        try:
            job.done.set_result(_judged(job, one))
        except Exception as error:  # noqa: BLE001 - of this image alone
            job.done.set_exception(error)


def _judged(job: Job, features: Tensor) -> Seen:
    counter, scorer = job.counter, job.counter.scorer
    found, usual = features.cpu().numpy(), moments(job.pixels, features)
    if scorer is None:
        return Seen(found, usual, None, None)
    fit = scorer.takes_features_of(counter.embedder)
    scored, anomaly = scorer.judge(features if fit else embed_image(scorer.detector, job.data))
    drawn = draw(scorer, anomaly.cpu().numpy(), job.data, job.want_map) if job.want_map else None
    return Seen(found, usual, scored, drawn)


def draw(scorer: Scorer, anomaly: np.ndarray, data: bytes, kind: str) -> dict[str, Any]:
    """The map (S, S) of an encoded image, in base64, and the range of its colours.

    png: the map in colours. overlay: PNG of the image in grey under it. raw: float32, little-endian, as a .npy file.
    The range is the version's, the same for every image: dark up to what is usual for good parts (their median
    score), the threshold in the middle.
    """
    low, high = span(scorer, anomaly)
    if kind == "raw":
        made = _npy(anomaly)
    else:
        made = map_png(anomaly, low, high) if kind == "png" else _under(scorer, anomaly, data)
    return {MAPS[kind]: base64.b64encode(made).decode("ascii"), "map_range": [low, high]}


def span(scorer: Scorer, anomaly: np.ndarray) -> tuple[float, float]:
    """The range of a map's colours."""
    calibration = scorer.calibration
    if not calibration.scores:
        return float(anomaly.min()), float(anomaly.max())
    low = median(calibration.scores)
    return low, 2 * calibration.threshold - low


def overlaid(counter: Counter, data: bytes) -> bytes:
    """An encoded image -> PNG of it in grey, under the map of the version that serves now.

    Blocking; raises UnknownVersion while there is none, ImageError.
    """
    scorer = counter.scorer
    if scorer is None:
        raise UnknownVersion(f"line {counter.name}: no version gives verdicts yet, so there is no map.")
    torch.set_num_threads(counter.threads)
    anomaly = scorer.judge(embed_image(scorer.detector, data))[1].cpu().numpy()
    return _under(scorer, anomaly, data)


def backbones(counters: Iterable[Counter]) -> list[Backbone]:
    """The frozen modules that these lines and their current versions embed with, each once."""
    detectors = [d for c in counters for d in (c.embedder, c.scorer and c.scorer.detector)]
    found = {id(d.extractor): d.extractor for d in detectors if isinstance(d, FeatureDetector)}
    return list(found.values())


def try_out(detector: Detector) -> Tensor:
    """Features of a grey image: the backbone is loaded, or says why it cannot be."""
    return detector.embed(torch.full((1, 3, detector.size, detector.size), 127, dtype=torch.uint8))


def _under(scorer: Scorer, anomaly: np.ndarray, data: bytes) -> bytes:
    """PNG of an encoded image in grey under its map."""
    return png(overlay(shrink(decode(data), OVERLAY_SIDE), anomaly, *span(scorer, anomaly)))


def _npy(anomaly: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, anomaly.astype("<f4"), allow_pickle=False)
    return buffer.getvalue()


def _ready(counter: Counter, number: int) -> Scorer:
    """The version, tried out: what it computes on its first image, and what would fail, happens here."""
    state, calibration = counter.versions.load(number)
    scorer = Scorer(number, state, calibration, counter.device)
    scorer.judge(try_out(scorer.detector))
    return scorer
