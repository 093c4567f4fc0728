"""What versions of lines say of the same images: figures, errors at each one's own threshold, verdicts that differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ... import __version__
from ..protocols.judging import Judged, Told, untold
from ..records.figures import number
from ..records.results import METRICS
from .rates import Share, mcnemar
from .versions_judged import Folder, Judges
from .versions_named import Subject


@dataclass(frozen=True)
class Outcome:
    """One version on one folder. rejected: bool (N,), at its own threshold. p_values: float (N,)."""

    folder: Folder
    judged: Judged
    rejected: NDArray[np.bool_]
    p_values: NDArray[np.float64]

    @classmethod
    def of(cls, subject: Subject, folder: Folder, judged: Judged) -> "Outcome":
        """With the verdicts that the line would have given."""
        calibration = subject.scorer.calibration
        scores = [float(score) for score in judged.scores]
        rejected = np.array([calibration.verdict(score) == "reject" for score in scores], bool)
        return cls(folder, judged, rejected, np.array([calibration.p_value(score) for score in scores]))

    @cached_property
    def figures(self) -> dict[str, float]:
        """METRICS; NaN where the truth is not known."""
        return self.judged.figures() if self.folder.labelled else dict.fromkeys(METRICS, math.nan)

    @property
    def false_rejects(self) -> Share:
        """Of the good images; of none where the truth is not known."""
        good = ~self.judged.labels & self.folder.labelled
        return Share(int(self.rejected[good].sum()), int(good.sum()))

    @property
    def missed(self) -> Share:
        """Of the defects, those that passed."""
        return Share(int((~self.rejected[self.judged.labels]).sum()), int(self.judged.labels.sum()))

    @property
    def rejects(self) -> Share:
        """Of all images."""
        return Share(int(self.rejected.sum()), len(self.rejected))


@dataclass(frozen=True)
class Row:
    """One image as every version judged it. defect: None where the truth is not known.

    spread: the largest difference of its rank among all images of all folders, as a share of these, between versions.
    """

    folder: str
    name: str
    place: tuple[int, int]  # the folder's number, and the image's in it
    defect: bool | None
    scores: tuple[float, ...]
    p_values: tuple[float, ...]
    rejected: tuple[bool, ...]
    spread: float

    @property
    def changed(self) -> bool:
        """Whether versions disagree."""
        return len(set(self.rejected)) > 1

    @property
    def right(self) -> tuple[bool, ...] | None:
        """Which versions are; None where the truth is not known."""
        return None if self.defect is None else tuple(one is self.defect for one in self.rejected)


@dataclass(frozen=True)
class Compared:
    """outcomes: of each version on each folder. times: of each version, as `Judges.times`."""

    subjects: Sequence[Subject]
    folders: Sequence[Folder]
    outcomes: Sequence[Sequence[Outcome]]
    times: Sequence[dict[str, float]]

    @classmethod
    def of(cls, judges: Judges, folders: Sequence[Folder], told: Told = untold) -> "Compared":
        """Judges every image with every version. Raises DataError for a file that is no image."""
        columns = []
        for folder in folders:
            judged = judges.judge(folder, told)
            columns.append([Outcome.of(one, folder, own) for one, own in zip(judges.subjects, judged, strict=True)])
        times = [judges.times(one) for one in judges.subjects]
        return cls(judges.subjects, folders, list(zip(*columns, strict=True)), times)

    @cached_property
    def rows(self) -> list[Row]:
        """Every image, folder by folder."""
        spreads = iter(self._spreads())
        found = []
        for at, folder in enumerate(self.folders):
            own = [outcomes[at] for outcomes in self.outcomes]
            for n, sample in enumerate(folder.samples):
                found.append(
                    Row(
                        folder=folder.name,
                        name=folder.names[n],
                        place=(at, n),
                        defect=sample.defect if folder.labelled else None,
                        scores=tuple(float(one.judged.scores[n]) for one in own),
                        p_values=tuple(float(one.p_values[n]) for one in own),
                        rejected=tuple(bool(one.rejected[n]) for one in own),
                        spread=float(next(spreads)),
                    )
                )
        return found

    @property
    def changes(self) -> list[Row]:
        """The images whose verdicts change, the most different first."""
        return sorted((row for row in self.rows if row.changed), key=lambda row: -row.spread)

    def against(self, number: int) -> "Against":
        """The first version's verdicts beside another one's."""
        changed = [row for row in self.rows if row.rejected[0] is not row.rejected[number]]
        known = [row.right for row in changed if row.right is not None]
        return Against(len(changed), len(self.rows), sum(one[0] for one in known), sum(one[number] for one in known))

    def _spreads(self) -> NDArray[np.float64]:
        scores = [np.concatenate([one.judged.scores for one in outcomes]) for outcomes in self.outcomes]
        return np.ptp([rankdata(own) for own in scores], axis=0) / len(scores[0])

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; None for a figure that does not exist."""
        return {
            "everline_version": __version__,
            "folders": [_folder(one) for one in self.folders],
            "versions": [self._version(n) for n in range(len(self.subjects))],
            "changed": sum(row.changed for row in self.rows),
            "images": [self._row(row) for row in self.rows],
        }

    def _version(self, at: int) -> dict[str, Any]:
        subject, outcomes = self.subjects[at], self.outcomes[at]
        calibration, detector = subject.scorer.calibration, subject.scorer.detector
        return {
            "label": subject.label,
            "line": subject.line,
            "version": subject.version.version,
            "aliases": list(subject.version.aliases),
            "method": detector.name,
            "params": detector.params,
            "images_learned": detector.images_learned,
            "threshold": number(calibration.threshold),
            "calibrated": calibration.calibrated,
            "false_reject_rate": calibration.false_reject_rate,
            "state_bytes": subject.state_bytes,
            "ms_per_image": {name: number(value) for name, value in self.times[at].items()},
            "mean": {name: number(value) for name, value in means(outcomes).items()},
            "false_rejects": total(one.false_rejects for one in outcomes).to_json(),
            "missed_defects": total(one.missed for one in outcomes).to_json(),
            "against_the_first": self.against(at).to_json() if at else None,
            "folders": {one.folder.name: _outcome(one) for one in outcomes},
        }

    def _row(self, row: Row) -> dict[str, Any]:
        labels = [one.label for one in self.subjects]
        verdicts = ["reject" if one else "pass" for one in row.rejected]
        right = row.right or [None] * len(labels)
        every = zip(labels, row.scores, row.p_values, verdicts, right, strict=True)
        own = {
            label: {"score": number(score), "p_value": p, "verdict": verdict, "right": correct}
            for label, score, p, verdict, correct in every
        }
        head = {"folder": row.folder, "image": row.name, "defect": row.defect, "changed": row.changed}
        return {**head, "spread": row.spread, "by": own}


@dataclass(frozen=True)
class Against:
    """Of `of` verdicts, how many change; where the truth is known, how often the first is right and the other."""

    changed: int
    of: int
    first: int
    other: int

    @property
    def p(self) -> float:
        """See `mcnemar`."""
        return mcnemar(self.first, self.other)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        own = {"changed": self.changed, "of": self.of, "first_right": self.first, "this_right": self.other}
        return {**own, "p": number(self.p)}


def means(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """METRICS, means over the labelled folders; NaN where one of them lacks it."""
    known = [one.figures for one in outcomes if one.folder.labelled]
    return {name: sum(one[name] for one in known) / len(known) if known else math.nan for name in METRICS}


def total(shares: Any) -> Share:
    """All of them together."""
    return sum(shares, Share(0, 0))


def _folder(folder: Folder) -> dict[str, Any]:
    defects = sum(one.defect for one in folder.samples) if folder.labelled else None
    return {"name": folder.name, "images": len(folder.samples), "defects": defects}


def _outcome(one: Outcome) -> dict[str, Any]:
    return {
        "metrics": {name: number(value) for name, value in one.figures.items()},
        "false_rejects": one.false_rejects.to_json(),
        "missed_defects": one.missed.to_json(),
        "rejects": one.rejects.to_json(),
    }
