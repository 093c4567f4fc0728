"""What a gate decides on: the scores that versions of a line give to the same images."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...methods.errors import DataError, ImageError
from ...platform.gate import Evidence
from ...platform.line import Scorer, embed_image
from ...platform.log import LogReader
from ..data.datasets import Task
from ..protocols.judging import Told, untold
from ..sweeps.own_labels import OPERATOR, Label, read_labels
from ..sweeps.own_log import LEAST_DEFECTS, MADE, defect_of, sources

NORMAL, DEFECT, REMEMBERED = "normal", "defect", "remembered"  # as in `Evidence`
SYNTHETIC = "synthetic defect"


@dataclass(frozen=True)
class Seen:
    """An image to judge. kind: NORMAL, DEFECT or REMEMBERED. name: for errors."""

    name: str
    kind: str
    data: bytes


@dataclass(frozen=True)
class Chosen:
    """Images to judge by, still unread. counts: how many of each sort, for people."""

    images: Iterable[Seen]
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.counts.values())

    @property
    def caveat(self) -> str:
        """What a decision by these images cannot show; empty where all are labelled, and defects among them."""
        made, real = self.counts.get(SYNTHETIC, 0), self.counts[DEFECT]
        if made:
            return (
                f"{made} of {made + real} defects are synthetic: a candidate that finds fewer real ones may pass; "
                "name labelled images with --data, or give feedback"
            )
        return "" if real else "no defects: recall was not compared"


def from_folders(tasks: Sequence[Task]) -> Chosen:
    """The images to judge of folders in MVTec layout: somebody labelled all of them."""
    samples = [sample for task in tasks for sample in task.test]

    def images() -> Iterator[Seen]:
        for sample in samples:
            yield Seen(str(sample.path), DEFECT if sample.defect else NORMAL, _read(sample.path))

    defects = sum(sample.defect for sample in samples)
    return Chosen(images(), {NORMAL: len(samples) - defects, DEFECT: defects})


def from_log(reader: LogReader, after: int, seed: int = 0, bits: int = 0) -> Chosen:
    """A line's own images behind record `after`, the last that any of the versions learned from.

    What an operator called normal or a defect is that; where fewer than ten defects are, synthetic ones are added.
    What the guard admitted is remembered as normal. What it rejected is left out: a version's own verdict is no label
    to measure others by. bits: of the line.
    """
    labels = [label for label in read_labels(reader.records(images=False))[0] if label.seq > after]
    kinds = {label.seq: kind for label in labels if (kind := _kind(label))}
    normal, counts = [seq for seq, kind in kinds.items() if kind != DEFECT], _counted(kinds.values())
    made = min(MADE, len(normal)) if counts[DEFECT] < LEAST_DEFECTS else 0
    spoilt = set(sources(normal, made))

    def images() -> Iterator[Seen]:
        for record in reader.records(after=after):
            if record.seq in kinds and record.image is not None:
                yield Seen(f"record {record.seq}", kinds[record.seq], record.image)
            if record.seq in spoilt and record.image is not None:
                yield Seen(f"record {record.seq}, spoilt", DEFECT, defect_of(record.image, record.seq, seed, bits)[0])

    return Chosen(images(), counts | {SYNTHETIC: made})


def judge(versions: Sequence[Scorer], images: Chosen, told: Told = untold) -> list[Evidence]:
    """Every version's scores of all images, read once; embedded once for versions that take the same features.

    Raises DataError for what is no image.
    """
    found: list[dict[str, list[float]]] = [{NORMAL: [], DEFECT: [], REMEMBERED: []} for _ in versions]
    for n, seen in enumerate(images.images, 1):
        for scores, score in zip(found, _scores(versions, seen), strict=True):
            scores[seen.kind].append(score)
        told("judge", n, images.count)
    return [
        Evidence(tuple(own[NORMAL]), tuple(own[DEFECT]), version.calibration.threshold, tuple(own[REMEMBERED]))
        for version, own in zip(versions, found, strict=True)
    ]


def _scores(versions: Sequence[Scorer], seen: Seen) -> list[float]:
    first, *_ = versions
    try:
        features = embed_image(first.detector, seen.data)
        own = [
            features if version.takes_features_of(first.detector) else embed_image(version.detector, seen.data)
            for version in versions
        ]
    except ImageError as error:
        raise DataError(f"{seen.name}: {error}") from error
    return [float(version.detector.score(one).image[0]) for version, one in zip(versions, own, strict=True)]


def _kind(label: Label) -> str:
    """What a label makes of an image here; "" for nothing."""
    if label.by == OPERATOR:
        return DEFECT if label.defect else NORMAL
    return "" if label.defect else REMEMBERED


def _counted(kinds: Iterable[str]) -> dict[str, int]:
    found = list(kinds)
    return {kind: found.count(kind) for kind in (NORMAL, REMEMBERED, DEFECT)}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error}") from error
