"""A comparison of versions in MLflow: a run for each version, in one experiment, under the names of evaluations.

params    line, version, method and its parameters, data (names of the folders), against (the first of the versions)
metrics   means over labelled folders: image_auroc, ...; false_reject_rate and missed_defect_rate of all of them, with
          /low and /high (Wilson); reject_rate of all images; ms_per_image/STEP, state_bytes; changed_verdicts against
          the first version. The same of each folder under FOLDER/.
artifact  comparison.json, the whole comparison
"""

import json

from ... import __version__
from ...platform.runs import Run
from ..runs.tracked import experiment, flat, labelled, under
from .rates import Share
from .versions_compared import Compared, means, total

KIND = "versions"


def to_runs(found: Compared) -> list[Run]:
    """A run for each version, all with the same artifact."""
    text = json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n"
    return [to_run(found, n, text) for n in range(len(found.subjects))]


def to_run(found: Compared, at: int, text: str) -> Run:
    """One version's run."""
    subject = found.subjects[at]
    own = {
        "line": subject.line,
        "version": subject.version.version,
        "method": subject.scorer.detector.name,
        "data": ", ".join(one.name for one in found.folders),
        "against": found.subjects[0].label,
    }
    return Run(
        experiment=experiment(KIND),
        name=f"{subject.label} (version {subject.version.version})",
        params=flat(subject.scorer.detector.params) | flat(own),
        tags={
            "everline.kind": "version",
            "everline.version": __version__,
            "everline.compared": ", ".join(f"{one.line}@{one.version.version}" for one in found.subjects),
        },
        metrics=metrics(found, at),
        artifacts={"comparison.json": text},
    )


def metrics(found: Compared, at: int) -> dict[str, float]:
    """Of all folders, then of each."""
    outcomes = found.outcomes[at]
    own = means(outcomes) | {"state_bytes": float(found.subjects[at].state_bytes)}
    own |= under("ms_per_image", found.times[at])
    own |= rate("false_reject_rate", total(one.false_rejects for one in outcomes))
    own |= rate("missed_defect_rate", total(one.missed for one in outcomes))
    own |= {"reject_rate": total(one.rejects for one in outcomes).value}
    own |= {"changed_verdicts": float(found.against(at).changed)}
    for label, one in zip(labelled([one.folder.name for one in outcomes]), outcomes, strict=True):
        more = rate("false_reject_rate", one.false_rejects) | rate("missed_defect_rate", one.missed)
        own |= under(label, {**one.figures, **more, "reject_rate": one.rejects.value})
    return own


def rate(name: str, share: Share) -> dict[str, float]:
    """A share with its interval."""
    low, high = share.interval
    return {name: share.value, f"{name}/low": low, f"{name}/high": high}
