"""What a sweep is after: one number of a trial's record, and the front of what nothing beats in every respect."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..records.results import TIMES, Result

Measures = Mapping[str, float]


@dataclass(frozen=True)
class Objective:
    """of: from `measures`. curve: the figure of a curve's points that speaks for it on the way; "" for none."""

    title: str
    of: Callable[[Measures], float]
    higher: bool = True
    curve: str = ""

    def better(self, one: float, other: float) -> bool:
        """Whether `one` beats `other`; NaN beats nothing, and every number beats NaN."""
        if math.isnan(one) or math.isnan(other):
            return not math.isnan(one)
        return one > other if self.higher else one < other


OBJECTIVES = {
    "auroc": Objective("image AUROC", lambda m: m["image_auroc"], curve="image_auroc"),
    "f1": Objective("pixel F1", lambda m: m["pixel_f1"], curve="pixel_f1"),
    "f1_per_mb": Objective("pixel F1 for each MB of memory", lambda m: m["pixel_f1"] / (m["state_bytes"] / 1e6)),
    "latency": Objective("ms an image, backbone included", lambda m: m["ms_per_image"], higher=False),
}
FRONT = {"image_auroc": True, "state_bytes": False, "ms_per_image": False}  # measure: whether more is better


def measures(result: Result) -> dict[str, float]:
    """A record's means over tasks: metrics, `state_bytes` (of a sequence with its replay memory), `ms_per_image`
    (backbone, score and learn at batch 1); of a sequence, the averages after its last step."""
    found = dict(result.mean)
    found["ms_per_image"] = sum(sum(task.ms_per_image[name] for name in TIMES) for task in result.tasks) / max(
        1, len(result.tasks)
    )
    if result.continued is not None:
        found |= {name: row["average"] for name, row in result.continued.measures.items() if name in found}
        found["state_bytes"] = sum(v for name, v in result.continued.memory_bytes.items() if name != "networks")
    return found


def front(rows: Sequence[Measures], respects: Mapping[str, bool] | None = None) -> list[int]:
    """Places of the rows that no other row is at least as good as in every respect, and better in one (Pareto).

    respects: measure and whether more of it is better. Rows with a NaN among them are on no front.
    """
    signs = {name: 1 if more else -1 for name, more in (respects or FRONT).items()}
    points = [tuple(sign * row[name] for name, sign in signs.items()) for row in rows]
    known = [n for n, point in enumerate(points) if not any(map(math.isnan, point))]

    def beaten(n: int) -> bool:
        return any(points[m] != points[n] and all(map(float.__ge__, points[m], points[n])) for m in known)

    return [n for n in known if not beaten(n)]
