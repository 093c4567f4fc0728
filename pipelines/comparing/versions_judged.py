"""Images judged by several versions at once: one backbone pass for all that embed alike, each at its own threshold."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...methods.errors import ConfigError
from ..data.datasets import Sample, list_images, read_folder
from ..data.masks import check_masks
from ..protocols.judging import Clock, Features, Judged, Panel, Told, untold
from .versions_named import Subject


@dataclass(frozen=True)
class Folder:
    """Images to judge. labelled: whether it is known which are defects (MVTec layout)."""

    name: str
    samples: tuple[Sample, ...]
    labelled: bool

    @property
    def names(self) -> tuple[str, ...]:
        """KIND/FILE, or FILE where kinds are not known."""
        return tuple(f"{one.kind}/{one.path.name}" if self.labelled else one.path.name for one in self.samples)


def read_judged(folders: Sequence[Path]) -> list[Folder]:
    """The test images of folders in MVTec layout; of a folder without `test` the images in it, unlabelled.

    Raises DataError for a folder without images, ConfigError for none, and for two of one name.
    """
    if not folders:
        raise ConfigError("compare: versions judge images; give --data DIR... (MVTec layout, or images alone).")
    found = [_read(Path(os.path.abspath(path))) for path in folders]  # not resolved: a link keeps its name
    names = [folder.name for folder in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"--data: two folders are called {twice[0]!r}; figures need a name for each.")
    for folder in found:
        check_masks(folder.name, folder.samples)
    return found


def _read(path: Path) -> Folder:
    if (path / "test").is_dir():
        return Folder(path.name, read_folder(path).test, labelled=True)
    return Folder(path.name, tuple(Sample(image, False, "") for image in list_images(path)), labelled=False)


class Judges:
    """The versions at work, with the clock running.

    Times are means at batch 1 without the first image, which sets things up: what a line would take from then on.
    """

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self.subjects = subjects
        self.clock = Clock()
        self._eyes: dict[tuple[Any, ...], Features] = {}
        for subject in subjects:
            detector = subject.scorer.detector
            self._eyes.setdefault(detector.embedding, Features(lambda it=detector: it, keep=0))  # type: ignore[misc]
        self._seen = 0

    def judge(self, folder: Folder, told: Told = untold) -> list[Judged]:
        """Each version's judgement of all images of a folder. Raises DataError for a file that is no image.

        Maps are kept only where there are masks to hold them against.
        """
        panels = [Panel.of(folder.samples, self.eyes(one).view, folder.names) for one in self.subjects]
        scores = [np.empty(len(folder.samples), np.float32) for _ in self.subjects]
        maps = [_room(one, panel) for one, panel in zip(self.subjects, panels, strict=True)]
        for n, sample in enumerate(folder.samples):
            for at, (score, anomaly) in enumerate(self.look(sample.path)):
                scores[at][n] = score
                kept = maps[at]
                if kept is not None:
                    kept[n] = anomaly
            told("judge", n + 1, len(folder.samples))
        made = zip(scores, panels, maps, strict=True)
        return [Judged(folder.names, own, panel.labels, kept, panel.masks) for own, panel, kept in made]

    def look(self, path: Path) -> list[tuple[float, NDArray[np.float32]]]:
        """One image's score and map (S, S) by each version."""
        features = {key: eyes.get(path, again=False) for key, eyes in self._eyes.items()}
        self._seen += 1
        found = []
        for subject in self.subjects:
            own = features[subject.scorer.detector.embedding].clone()  # or one could spoil it for the next
            if self._seen == 2:
                self.clock.reset(subject.label)
            with self.clock(subject.label):
                verdict, anomaly = subject.scorer.judge(own)
            found.append((verdict["score"], anomaly.cpu().numpy()))
        return found

    def eyes(self, subject: Subject) -> Features:
        """What embeds for a version."""
        return self._eyes[subject.scorer.detector.embedding]

    def times(self, subject: Subject) -> dict[str, float]:
        """Milliseconds an image; the backbone is shared by the versions that embed alike."""
        backbone = self.eyes(subject).clock.mean_ms("backbone")
        return {"backbone": backbone, "score": self.clock.mean_ms(subject.label)}


def _room(subject: Subject, panel: Panel) -> NDArray[np.float32] | None:
    detector = subject.scorer.detector
    if panel.masks is None or not detector.traits.gives_map:
        return None
    return np.empty((len(panel.samples), detector.size, detector.size), np.float32)
