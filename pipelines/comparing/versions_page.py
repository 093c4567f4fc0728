"""The page of a comparison of versions: tables, scores against scores, heatmaps side by side."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..protocols.judging import Panel
from ..records.curves import Curve
from ..records.report import Gallery, Picture, Report, Table
from .versions_compared import Compared, Row
from .versions_judged import Judges
from .versions_shown import truth

CHANGED, DIFFERENT = 16, 8  # images with heatmaps: of changed verdicts, and of the others
SERIES = {False: "good", True: "defect", None: "not labelled"}


def page(found: Compared, judges: Judges, made: Sequence[Table]) -> Report:
    """Judges the images that it shows once more, for their maps."""
    names = ", ".join(f"{one.label} (version {one.version.version})" for one in found.subjects)
    intro = (
        f"{names} on {len(found.rows)} images of {', '.join(one.name for one in found.folders)}. "
        f"{sum(row.changed for row in found.rows)} verdicts change.\n\n"
        "Heatmaps: each version has a scale of its own, from 0, the median of its maps of good images shown here (of "
        "all, if the truth is not known), to 1, their 99.9 % quantile. Scores of different versions do not compare; "
        "p-values and verdicts do."
    )
    return Report(
        f"everline compare: {', '.join(one.label for one in found.subjects)}",
        intro,
        tables=made,
        curves=[scatter(found, n) for n in range(1, len(found.subjects))],
        galleries=galleries(found, judges),
        footer="\n".join(origins(found)),
    )


def origins(found: Compared) -> list[str]:
    """What each version is."""
    made = []
    for one in found.subjects:
        params = ", ".join(f"{name}={value}" for name, value in one.scorer.detector.params.items())
        aliases = f" ({', '.join(one.version.aliases)})" if one.version.aliases else ""
        made.append(f"{one.label}: version {one.version.version}{aliases} of {one.line}, {params}")
    return made


def scatter(found: Compared, other: int) -> Curve:
    """Every image's score by one version over that by the first; marked: the first one's threshold."""
    first, second = found.subjects[0], found.subjects[other]
    series: dict[str, list[tuple[float, float]]] = {name: [] for name in SERIES.values()}
    for row in found.rows:
        series[SERIES[row.defect]].append((row.scores[0], row.scores[other]))
    series = {name: points for name, points in series.items() if points}
    threshold = second.scorer.calibration.threshold
    return Curve(
        f"Scores of {second.label} over those of {first.label}",
        f"score of {first.label}",
        f"score of {second.label}",
        series,
        markers={"threshold": first.scorer.calibration.threshold},
        dots=list(series),
        note=f"Threshold of {second.label}: {threshold:.4g}.",
    )


def shown(found: Compared) -> list[Row]:
    """The images with heatmaps: changed verdicts first, then the most different of the others."""
    others = sorted((row for row in found.rows if not row.changed), key=lambda row: -row.spread)
    return [*found.changes[:CHANGED], *others[:DIFFERENT]]


def galleries(found: Compared, judges: Judges) -> list[Gallery]:
    """One for each image, its pictures side by side; each version's maps on a scale of its own."""
    rows = shown(found)
    pictures = [_pictures(found, judges, row) for row in rows]
    scaled = [_scaled(column) for column in zip(*pictures, strict=True)]
    changed, several = sum(row.changed for row in found.rows), len(found.folders) > 1
    made = []
    for row, own in zip(rows, zip(*scaled, strict=True), strict=True):
        name = f"{row.folder}/{row.name}" if several else row.name
        title = f"{'Changed' if row.changed else 'Different'}: {name}"
        made.append(Gallery(title, own, scale=(0.0, 1.0), columns=len(own)))
    if changed > CHANGED:
        made[0] = replace(made[0], note=f"The {CHANGED} most different of {changed} changed verdicts are shown.")
    return made


def _pictures(found: Compared, judges: Judges, row: Row) -> list[Picture]:
    at, n = row.place
    sample = found.folders[at].samples[n]
    looks = judges.look(sample.path)
    made = []
    for place, subject in enumerate(found.subjects):
        view, calibration = judges.eyes(subject).view, subject.scorer.calibration
        masks = Panel.of([sample], view).masks
        gives = subject.scorer.detector.traits.gives_map
        made.append(
            Picture(
                image=view.picture(sample.path).permute(1, 2, 0).numpy(),
                map=looks[place][1] if gives else np.zeros((1, 1), np.float32),
                caption=f"{subject.label}, p {row.p_values[place]:.3g}",
                score=row.scores[place],
                threshold=calibration.threshold if np.isfinite(calibration.threshold) else None,
                verdict="reject" if row.rejected[place] else "pass",
                truth=truth(row),
                mask=None if masks is None else masks[0],
            )
        )
    return made


def _scaled(pictures: Sequence[Picture]) -> list[Picture]:
    """One version's pictures with maps from 0 to 1 over what `Gallery.range` finds."""
    low, high = Gallery("", pictures).range()
    width = high - low if high > low else 1.0

    def between(values: NDArray[np.floating]) -> NDArray[np.floating]:
        return (np.asarray(values, np.float64) - low) / width

    return [replace(one, map=between(one.map)) for one in pictures]
