"""What all protocols share: features embedded once, learning and judging with the clock running, figures.

What keeps every protocol honest stands here:

* The learner is given features through `learn`, and nothing else. Labels, masks, kinds and paths stay here; the
  embedding is done by another detector of the same parameters, which never learns.
* Images are judged by copies: a fresh detector takes over the learner's state, scores the images one at a time and
  is thrown away. What a method might keep from scoring never finds its way back into learning, and it never sees
  two judged images at once.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...methods.detector import Detector, Learned
from ...methods.errors import DataError
from ...methods.metrics import evaluate
from ...platform.depth import Unused
from ...platform.featurestore import FeatureStore
from ..data.datasets import Sample
from ..data.drift import Drift
from ..data.view import View
from ..records.results import METRICS, TIMES

Make = Callable[[], Detector]
Told = Callable[[str, int, int], None]  # what is being done, how many are done, of how many
Reached = Callable[[Mapping[str, float], int], None]  # a point of a curve, and the `images` of its last; may raise
KEEP = 2 * 2**30  # bytes of features held in memory; what does not fit is embedded anew each time


def untold(stage: str, done: int, of: int) -> None:
    """For those who want to hear of no progress."""


def onward(point: Mapping[str, float], of: int) -> None:
    """For those who let every run go on to its end."""


def staged(stage: str, drift: Drift | None) -> str:
    """The name of a stage, for those who hear of progress."""
    return f"{stage}, {drift.kind}" if drift else stage


@dataclass(frozen=True)
class Judged:
    """One judgement of N images, enough to recompute every figure."""

    names: tuple[str, ...]
    scores: NDArray[np.float32]  # (N,)
    labels: NDArray[np.bool_]  # (N,), True for a defect
    maps: NDArray[np.float32] | None  # (N, S, S); None for a method without maps
    masks: NDArray[np.bool_] | None  # (N, S, S); None for a task without masks
    taken: tuple[str, ...] | None = None  # the task that each image was taken for, by a method that finds it out

    def figures(self, names: Sequence[str] = METRICS) -> dict[str, float]:
        """The metrics of a result record, or others that `evaluate` knows."""
        found = evaluate(self.scores, self.labels, self.maps, self.masks)
        return {name: found[name] for name in names}

    @classmethod
    def joined(cls, parts: "Sequence[Judged]") -> "Judged":
        """Judgements of one detector one after the other, as one."""
        names = tuple(name for part in parts for name in part.names)
        scores, labels = np.concatenate([p.scores for p in parts]), np.concatenate([p.labels for p in parts])
        maps = [part.maps for part in parts if part.maps is not None]
        masks = [part.masks for part in parts if part.masks is not None]
        return cls(
            names, scores, labels, np.concatenate(maps) if maps else None, np.concatenate(masks) if masks else None
        )

    def part(self, start: int, end: int) -> "Judged":
        """The images [start, end)."""
        cut = slice(start, end)
        maps = None if self.maps is None else self.maps[cut]
        masks = None if self.masks is None else self.masks[cut]
        return Judged(self.names[cut], self.scores[cut], self.labels[cut], maps, masks)


class Features:
    """Features of images, each embedded once per drift as long as there is room; seeds and modes share them.

    That they can be shared is the contract's: `embed` is frozen and depends neither on learning nor on the seed.
    `again`: whether the images that are learned will be asked for again (by runs with other seeds). `crop`: see
    `View`, which raises ConfigError.

    stores: features on disk, of images under the sha256 of their files. What is in one is read from it each time (the
    page cache keeps it, `keep` is left to the others); drifted images are in none. The time of the backbone is then
    that which was measured when the stores were written, by whoever wrote them: what an image costs on a line, not
    what this run has paid.
    """

    def __init__(
        self,
        make: Make,
        keep: int = KEEP,
        again: bool = False,
        crop: int | None = None,
        stores: Sequence[FeatureStore] = (),
    ) -> None:
        self.eyes = make()  # embeds, and never learns
        self.again = again
        self.view = View(self.eyes.size, crop, self.eyes.bits, Unused("everline"))
        self.clock = Clock()
        self.stores = tuple(stores)
        self._room = keep
        self._calls = 0
        self._kept: dict[tuple[Path, Drift | None], Tensor] = {}
        self._paths: dict[str, Path] = {}  # by the sha256 of what is in the file
        self._digests: dict[Path, str] = {}
        self._begin()

    def read(self, path: Path) -> bytes:
        """A file's bytes, as they go into a memory; `of` then knows its features again. Raises DataError."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: {error}") from error
        digest = hashlib.sha256(data).hexdigest()
        self._paths[digest], self._digests[path] = path, digest
        return data

    def of(self, data: bytes) -> Tensor:
        """Features of an encoded image that came out of a memory, B = 1; embedded anew unless they are at hand."""
        digest = hashlib.sha256(data).hexdigest()
        path = self._paths.get(digest)
        if path is not None and (path, None) in self._kept:
            return self._kept[path, None].clone()
        if (stored := self._stored(digest)) is not None:
            return stored
        with self.clock("backbone"):
            return _done(self.eyes.embed(self.view.decoded(data)[None]))

    def get(self, path: Path, drift: Drift | None = None, again: bool = True) -> Tensor:
        """Features of one image, B = 1, the caller's own. Raises DataError for a file that is no image, Corrupt."""
        if (path, drift) in self._kept:
            return self._kept[path, drift].clone()  # a copy: a method that writes into it spoils nobody else's
        if drift is None and self.stores and (stored := self._stored(self._digest(path))) is not None:
            return stored
        picture = self.view.picture(path)
        if drift is not None:
            picture = torch.from_numpy(drift(picture.numpy(), path))
        self._calls += 1
        if self._calls == 2:
            self._begin()  # the first call set the backbone up: of several, it does not count
        with self.clock("backbone"):
            features = _done(self.eyes.embed(picture[None]))
        size = features.numel() * features.element_size()
        if again and size <= self._room:
            self._room -= size
            self._kept[path, drift] = features
        return features.clone()

    def _begin(self) -> None:
        """The backbone's time is what was measured for the stores, and nothing else so far."""
        self.clock.reset("backbone")
        if images := sum(map(len, self.stores)):
            spent = sum(store.ms_per_image * len(store) for store in self.stores) / 1000
            self.clock.spent["backbone"] = (spent, images)

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            self.read(path)
        return self._digests[path]

    def _stored(self, digest: str) -> Tensor | None:
        for store in self.stores:
            if digest in store:
                return store.get(digest).to(self.eyes.device)
        return None


class Bench:
    """One run of a protocol: its detectors, features, clock and progress."""

    def __init__(
        self,
        make: Make,
        told: Told = untold,
        features: Features | None = None,
        keep: int = KEEP,
        crop: int | None = None,
    ) -> None:
        self.make, self.told = make, told
        self.features = features or Features(make, keep, crop=crop)
        self.clock = Clock()

    def panel(self, samples: "Sequence[Sample]", names: Sequence[str] = ()) -> "Panel":
        """Images to judge, their masks seen as the images are."""
        return Panel.of(samples, self.features.view, names)

    def learn(
        self, learner: Detector, paths: Sequence[Path], drift: Drift | None = None, beside: Sequence[bytes] = ()
    ) -> Learned:
        """One call of `learn` with the features of these images, and what it reports.

        beside: encoded images out of a replay memory, which are learned in the same call.
        """
        again = self.features.again
        features = torch.cat(
            [self.features.get(path, drift, again) for path in paths] + [self.features.of(data) for data in beside]
        )
        with self.clock("learn", len(paths)):
            learned = learner.learn(features)
            _done(features)
        return learned

    def judge(
        self,
        learner: Detector,
        panel: "Panel",
        drift: Drift | None = None,
        told: Told | None = None,
        task: str | None = None,
    ) -> Judged:
        """Scores every image of a panel, one by one, by a copy of the learner; `task`: which one it is told they are.

        Setting up for the new state (factoring, indexing), which a copy does on its first image, is in the time.
        """
        count, size = len(panel.samples), self.features.view.size
        scores = np.full(count, np.nan, np.float32)
        maps = np.empty((count, size, size), np.float32) if learner.traits.gives_map else None
        taken: list[str] = []
        copy = self.make()
        copy.load_state(learner.state())
        for n, sample in enumerate(panel.samples):
            features = self.features.get(sample.path, drift)
            with self.clock("score"):
                found = copy.score(features) if task is None else copy.score(features, task)
                scores[n] = float(found.image)  # waits for the device
            if maps is not None:
                maps[n] = found.maps[0].cpu().numpy()
            if found.tasks is not None:
                taken.append(copy.tasks[int(found.tasks)])
            (told or self.told)(staged("judge", drift), n + 1, count)
        return Judged(panel.names, scores, panel.labels, maps, panel.masks, tuple(taken) or None)

    def embed(self, samples: Sequence[Sample], drift: Drift | None = None) -> None:
        """Embeds images beforehand, those that there is room for; checks that every file is an image."""
        for n, sample in enumerate(samples):
            self.features.get(sample.path, drift)
            self.told("embed", n + 1, len(samples))

    def times(self) -> dict[str, float]:
        """Mean milliseconds an image, as in a result record; NaN for what was not done."""
        clocks = {"backbone": self.features.clock}
        return {name: clocks.get(name, self.clock).mean_ms(name) for name in TIMES}


@dataclass(frozen=True)
class Panel:
    """Images to judge, in order, with what only the protocol may know of them."""

    samples: tuple[Sample, ...]
    names: tuple[str, ...]
    labels: NDArray[np.bool_]  # (N,)
    masks: NDArray[np.bool_] | None  # (N, S, S); None where a defect lacks its mask, or there are no defects

    @classmethod
    def of(cls, samples: Sequence[Sample], view: View, names: Sequence[str] = ()) -> "Panel":
        """Reads the masks. `names`: of the images; KIND/FILE where none are given."""
        labels = np.array([sample.defect for sample in samples], bool)
        names = tuple(names or (f"{sample.kind}/{sample.path.name}" for sample in samples))
        masked = labels.any() and all(sample.masks for sample in samples if sample.defect)
        masks = np.zeros((len(samples), view.size, view.size), bool) if masked else None
        if masks is not None:
            for n, sample in enumerate(samples):
                for file in sample.masks:
                    masks[n] |= view.mask(file, sample.above, sample.path)
        return cls(tuple(samples), names, labels, masks)

    def part(self, start: int, end: int) -> "Panel":
        """The images [start, end)."""
        cut = slice(start, end)
        masks = None if self.masks is None else self.masks[cut]
        return Panel(self.samples[cut], self.names[cut], self.labels[cut], masks)


class Clock:
    """Seconds spent under a name, and on how many images."""

    def __init__(self) -> None:
        self.spent: dict[str, tuple[float, int]] = {}

    def __call__(self, name: str, images: int = 1) -> "_Lap":
        return _Lap(self, name, images)

    def reset(self, name: str) -> None:
        """Forgets what was spent under a name."""
        self.spent.pop(name, None)

    def mean_ms(self, name: str) -> float:
        """Mean milliseconds an image: unlike medians, means add up, and they count the seldom and costly steps."""
        seconds, images = self.spent.get(name, (0.0, 0))
        return 1000 * seconds / images if images else math.nan


class _Lap:
    def __init__(self, clock: Clock, name: str, images: int) -> None:
        self.clock, self.name, self.images = clock, name, images

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: Any) -> None:
        seconds, images = self.clock.spent.get(self.name, (0.0, 0))
        self.clock.spent[self.name] = (seconds + time.perf_counter() - self.start, images + self.images)


def _done(features: Tensor) -> Tensor:
    """Waits for an accelerator, which works in the background, so that time is booked where it is spent."""
    if features.is_cuda:
        torch.cuda.synchronize(features.device)
    return features
