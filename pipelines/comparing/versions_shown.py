"""Versions of lines as tables: what they are, how good each is, and whose verdicts change."""

from collections.abc import Iterable, Sequence

from ..records.figures import shown
from ..records.report import Table
from ..records.results import METRICS
from .rates import Share
from .versions_compared import Compared, Outcome, Row, means, total

TITLES = {
    "image_auroc": "image\nAUROC",
    "image_ap": "image\nAP",
    "pixel_auroc": "pixel\nAUROC",
    "pixel_ap": "pixel\nAP",
    "aupro": "AUPRO",
    "pixel_f1": "pixel\nF1",
}
MOST = 40  # changed verdicts in a table; JSON has all
Cells = list[str | None]


def tables(found: Compared) -> list[Table]:
    """What they are, all labelled folders together (of several), each folder, verdicts that change."""
    labelled = [n for n, folder in enumerate(found.folders) if folder.labelled]
    made = [versions(found)]
    if len(labelled) > 1:
        made.append(_figures(found, f"mean over {len(labelled)} folders, errors in all of them", labelled))
    made += [_figures(found, folder_title(found, n), [n]) for n in labelled]
    plain = [n for n in range(len(found.folders)) if n not in labelled]
    return [*made, *(unlabelled(found, n) for n in plain), against(found), *changes(found)]


def versions(found: Compared) -> Table:
    """A row for each."""
    heads = ["", "version", "method", "learned", "threshold", "rate\nto keep", "can\npromise it", "MB", "backbone\nms"]
    rows = []
    for subject, times in zip(found.subjects, found.times, strict=True):
        calibration, detector = subject.scorer.calibration, subject.scorer.detector
        cells: Cells = [
            subject.label,
            str(subject.version.version),
            detector.name,
            str(detector.images_learned),
            f"{calibration.threshold:.4g}",
            f"{calibration.false_reject_rate:g}",
            "yes" if calibration.calibrated else "no",
            f"{subject.state_bytes / 1e6:.2f}",
            *(shown(times[name], ".2f") for name in ("backbone", "score")),
        ]
        rows.append(cells)
    note = "Rate to keep: of good images rejected. ms: an image, but for the first; one backbone pass for all alike."
    return Table("versions", [*heads, "score\nms"], rows, note)


def _figures(found: Compared, title: str, places: Sequence[int]) -> Table:
    """A row for each version on these folders; figures that none has are left out."""
    own = [[outcomes[n] for n in places] for outcomes in found.outcomes]
    figures = [means(outcomes) for outcomes in own]
    kept = [name for name in METRICS if any(shown(one[name]) for one in figures)]
    rows: list[Cells] = [
        [subject.label, *(shown(one[name]) for name in kept), *errors(outcomes)]
        for subject, one, outcomes in zip(found.subjects, figures, own, strict=True)
    ]
    heads = ["", *(TITLES[name] for name in kept), "false rejects", "missed defects"]
    return Table(title, heads, rows, "Errors: each at its own threshold, with 95 % confidence (Wilson).")


def errors(outcomes: Sequence[Outcome]) -> Iterable[str | None]:
    """False rejects of the good images, missed ones of the defects."""
    yield total(one.false_rejects for one in outcomes).text()
    yield total(one.missed for one in outcomes).text()


def folder_title(found: Compared, at: int) -> str:
    """Its name, and what is in it."""
    folder = found.folders[at]
    defects = sum(one.defect for one in folder.samples)
    return f"{folder.name}: {len(folder.samples) - defects} good images, {defects} defects"


def unlabelled(found: Compared, at: int) -> Table:
    """How many images of a folder each version rejects."""
    folder = found.folders[at]
    shares: list[Share] = [outcomes[at].rejects for outcomes in found.outcomes]
    rows = [[one.label, share.text()] for one, share in zip(found.subjects, shares, strict=True)]
    return Table(f"{folder.name}: {len(folder.samples)} images, not labelled", ["", "rejected"], rows)


def against(found: Compared) -> Table:
    """How many verdicts each version changes, and how often it is right where it does."""
    first, *others = found.subjects
    rows: list[Cells] = []
    for n, subject in enumerate(others, 1):
        one = found.against(n)
        cells = [f"{one.changed} of {one.of}", str(one.first), str(one.other), shown(one.p, ".2g")]
        rows.append([subject.label, *cells])
    note = "Right: of the changed verdicts whose truth is known. p: that both err equally often (McNemar, exact)."
    heads = ["", "changed", f"{first.label}\nright", "this one\nright", "p"]
    return Table(f"verdicts against {first.label}", heads, rows, note)


def changes(found: Compared) -> list[Table]:
    """The changed verdicts, the most different first; no table where none changes."""
    rows = found.changes
    if not rows:
        return []
    heads = ["image", "truth", *(subject.label for subject in found.subjects)]
    note = f"The {MOST} most different of {len(rows)}." if len(rows) > MOST else ""
    several = len(found.folders) > 1
    body = [[*_head(row, several), *_verdicts(row), _right(found, row)] for row in rows[:MOST]]
    return [Table("verdicts that change", [*heads, "right"], body, note)]


def truth(row: Row) -> str:
    """`ok`, `defect`, or nothing where it is not known."""
    return "" if row.defect is None else "defect" if row.defect else "ok"


def _head(row: Row, several: bool) -> Cells:
    return [f"{row.folder}/{row.name}" if several else row.name, truth(row) or None]


def _verdicts(row: Row) -> Cells:
    """`reject 129.1 (p 0.0488)` for each version."""
    every = zip(row.scores, row.p_values, row.rejected, strict=True)
    return [f"{'reject' if rejected else 'pass'} {score:.4g} (p {p:.3g})" for score, p, rejected in every]


def _right(found: Compared, row: Row) -> str | None:
    if row.right is None:
        return None
    return ", ".join(one.label for one, right in zip(found.subjects, row.right, strict=True) if right)
