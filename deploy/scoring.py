"""What a replica computes: one frozen backbone for all lines that name the same one, and a version for each line.

On a GPU images of different lines go through it together, as many as wait (`Queue`). On a CPU they go one at a time:
there a batch gives other bits than single images, and takes longer at the usual size (docs/results.md).
"""

import base64
import io
import logging
import threading
from collections import OrderedDict, deque
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
from ..platform.depth import Unused
from ..platform.drift import moments
from ..platform.images import Views, prepare
from ..platform.line import Scorer
from ..platform.pictures import map_png, overlay, png

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
    unused: Unused = field(init=False)  # hears of 16-bit files that do not say their bits
    problem: str = ""  # why the current version could not be looked up or loaded; empty when all is well

    def __post_init__(self) -> None:
        self.unused = Unused(f"line {self.name}")


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
    """An image that waits to be seen. views: of its `data`, as `wanted` says. want_map: one of MAPS, or empty."""

    counter: Counter
    data: bytes
    views: Views
    want_map: str = ""
    done: "Future[Seen]" = field(default_factory=Future)

    @property
    def pixels(self) -> Tensor:
        """uint8 (3, S, S), what the line's embedder takes."""
        return self.views.squares[self.counter.embedder.size]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for images that may go through a backbone together."""
        return *self.counter.embedder.embedding, self.counter.threads


class Queue:
    """Images that wait for the thread that computes: each line's next one, then the next line's."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, deque[Job]] = OrderedDict()  # by line; whose turn is next comes first
        self._lock = threading.Lock()

    def put(self, job: Job) -> None:
        """`work` has to be called once for each."""
        with self._lock:
            self._jobs.setdefault(job.counter.name, deque()).append(job)

    def work(self) -> None:
        """Sees the next, and what may go with it; nothing where that has been done. Blocking."""
        with self._lock:
            some = self._some()
        see([job for job in some if job.done.set_running_or_notify_cancel()])

    def clear(self) -> None:
        """Whoever waits is told that nothing comes any more."""
        with self._lock:
            left, self._jobs = [job for jobs in self._jobs.values() for job in jobs], OrderedDict()
        for job in left:
            job.done.cancel()

    def _some(self) -> list[Job]:
        """Take the next, and as many of its kind as a pass may take, in turns."""
        some: list[Job] = []
        while not some or len(some) < some[0].counter.embedder.together:
            fits = (name for name, jobs in self._jobs.items() if not some or jobs[0].kind == some[0].kind)
            name = next(fits, None)
            if name is None:
                break
            some.append(self._jobs[name].popleft())
            self._jobs.move_to_end(name)
            if not self._jobs[name]:
                del self._jobs[name]
        return some


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
    scored, anomaly = scorer.judge(features if fit else _embedded(scorer, job.views, job.data))
    drawn = draw(scorer, anomaly.cpu().numpy(), job.views, job.want_map) if job.want_map else None
    return Seen(found, usual, scored, drawn)


def wanted(counter: Counter, own: bool, picture: bool) -> dict[str, Any]:
    """What `views` is to make of an image, for one decoding to be enough: sizes, bits, and the side of a picture.

    own: what the line's embedder takes; what its version takes comes along where that is another size (and not where
    it is other bits: then the image is decoded again). picture: what an overlay is drawn on.
    """
    scorer = counter.scorer
    bits = counter.embedder.bits if own or scorer is None else scorer.detector.bits
    sizes = {counter.embedder.size} if own else set()
    if (
        scorer is not None
        and scorer.detector.bits == bits
        and not (own and scorer.takes_features_of(counter.embedder))
    ):
        sizes.add(scorer.detector.size)
    return {"sizes": sizes, "side": OVERLAY_SIDE if picture else 0, "bits": bits}


def _embedded(scorer: Scorer, seen: Views, data: bytes) -> Tensor:
    """Embed as the version does; a version that came after the decoding may want another size, or other bits."""
    size, bits = scorer.detector.size, scorer.detector.bits
    there = size in seen.squares and seen.bits == bits
    pixels = seen.squares[size] if there else prepare(data, size, bits=bits)
    return scorer.detector.embed(pixels[None])


def draw(scorer: Scorer, anomaly: np.ndarray, seen: Views, kind: str) -> dict[str, Any]:
    """The map (S, S) of an image, in base64, and the range of its colours.

    png: the map in colours. overlay: PNG of the image in grey under it. raw: float32, little-endian, as a .npy file.
    The range is the version's, the same for every image: dark up to what is usual for good parts (their median
    score), the threshold in the middle.
    """
    low, high = span(scorer, anomaly)
    if kind == "raw":
        made = _npy(anomaly)
    else:
        made = map_png(anomaly, low, high) if kind == "png" else _under(scorer, anomaly, seen)
    return {MAPS[kind]: base64.b64encode(made).decode("ascii"), "map_range": [low, high]}


def span(scorer: Scorer, anomaly: np.ndarray) -> tuple[float, float]:
    """The range of a map's colours."""
    calibration = scorer.calibration
    if not calibration.scores:
        return float(anomaly.min()), float(anomaly.max())
    low = median(calibration.scores)
    return low, 2 * calibration.threshold - low


def overlaid(counter: Counter, data: bytes, seen: Views) -> bytes:
    """PNG of an image in grey, under the map of the version that serves now. seen: of its data, as `wanted` says.

    Blocking; raises UnknownVersion while there is none.
    """
    scorer = counter.scorer
    if scorer is None:
        raise UnknownVersion(f"line {counter.name}: no version gives verdicts yet, so there is no map.")
    torch.set_num_threads(counter.threads)
    anomaly = scorer.judge(_embedded(scorer, seen, data))[1].cpu().numpy()
    return _under(scorer, anomaly, seen)


def backbones(counters: Iterable[Counter]) -> list[Backbone]:
    """The frozen modules that these lines and their current versions embed with, each once."""
    detectors = [d for c in counters for d in (c.embedder, c.scorer and c.scorer.detector)]
    found = {id(d.extractor): d.extractor for d in detectors if isinstance(d, FeatureDetector)}
    return list(found.values())


def try_out(detector: Detector) -> Tensor:
    """Features of a grey image: the backbone is loaded, or says why it cannot be."""
    return detector.embed(torch.full((1, 3, detector.size, detector.size), 127, dtype=torch.uint8))


def _under(scorer: Scorer, anomaly: np.ndarray, seen: Views) -> bytes:
    """PNG of an image in grey under its map."""
    assert seen.picture is not None
    return png(overlay(seen.picture, anomaly, *span(scorer, anomaly)))


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
