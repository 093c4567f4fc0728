"""A comparison's records paired over seeds: which figures, against which record, as tables and as JSON."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..records.figures import shown
from ..records.report import Table
from .comparison import Comparison, Record
from .significance import FEW, LEAST, Cells, Pair, against, best_of, pair, seeds_of

FIGURES = {"image_auroc": "image AUROC", "aupro": "AUPRO", "pixel_f1": "pixel F1"}
BEST_BY = "image_auroc"
AVERAGE = "average"  # stands for all tasks of a sequence, after its last step


@dataclass(frozen=True)
class Paired:
    """best: the record that the others are set against. figures: by name, the others. why: what is to be known of it.

    Where nothing can be paired `best` is None, and `why` says the reason; "" for a single record.
    """

    best: str | None
    why: str
    figures: dict[str, list[Pair]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = {name: [one.to_json() for one in pairs] for name, pairs in self.figures.items()}
        return {"best": self.best, "by": BEST_BY, "figures": rows, "note": self.why}


def paired(comparison: Comparison) -> Paired:
    """What the seeds of these records say about their differences."""
    records = {one.label: cells(comparison, one, BEST_BY) for one in comparison.records}
    if len(records) < LEAST:
        return Paired(None, "")
    best = best_of(records)
    if best is None:
        single = all(len(seeds_of(one)) < LEAST for one in records.values())
        what = "the records have a single seed each" if single else "no two records share two seeds and their tasks"
        return Paired(None, f"Not paired over seeds: {what}; run them with the same --seeds to tell chance apart.")
    every = {name: {one.label: cells(comparison, one, name) for one in comparison.records} for name in FIGURES}
    figures = {name: against(best, found) for name, found in every.items()}
    apart = [name for name, one in records.items() if name != best and pair(name, one, records[best]) is None]
    kept = {name: pairs for name, pairs in figures.items() if pairs}
    return Paired(best, note(apart, [one for pairs in kept.values() for one in pairs]), kept)


def cells(comparison: Comparison, record: Record, name: str) -> Cells:
    """A figure by task and seed, on the tasks that all records have; nothing of a record with a single seed.

    Of a sequence, the average over its tasks after the last step, if all records are of the same tasks.
    """
    continued = record.result.continued
    if continued is None:
        runs = {task: record.tasks[task].runs for task in comparison.shared}
        return {task: {run.seed: run.metrics[name] for run in own} for task, own in runs.items()}
    if comparison.shared != comparison.tasks:
        return {}
    seeded = {run.seed: run.measures[name]["average"] for run in continued.runs if run.seed is not None}
    return {AVERAGE: seeded} if seeded else {}


def note(apart: Sequence[str], pairs: Sequence[Pair]) -> str:
    """How to read the tables, and what is not in them."""
    said = [
        "Difference: to the best by mean image AUROC, seed by seed, with its interval of 95 % confidence (t) and p of "
        "the paired t-test, then corrected for the number of records (Holm). Wins: of the seeds x tasks. The seeds "
        "share their images, and the best was chosen by the same figures: p is on the small side."
    ]
    fewest = min(one.seeds for one in pairs)
    if fewest < FEW:
        said.append(f"{fewest} seeds are weak evidence.")
    if any(math.isnan(one.p) for one in pairs):
        said.append("Without p: every seed gives the same difference.")
    if apart:
        said.append(f"Not in here, for want of two seeds in common with it: {', '.join(apart)}.")
    return " ".join(said)


def paired_tables(found: Paired) -> list[Table]:
    """A table for each figure, the note below the last of them; none where nothing can be paired."""
    if found.best is None:
        return []
    heads = ["record", "seeds", "difference", "95 %\ninterval", "p", "p, Holm", "wins"]
    last = next(reversed(found.figures))
    return [
        Table(
            f"paired over seeds, {FIGURES[name]}: less {found.best}",
            heads,
            [row(one) for one in pairs],
            found.why if name == last else "",
        )
        for name, pairs in found.figures.items()
    ]


def row(one: Pair) -> list[str | None]:
    """A pair's cells."""
    wins = f"{one.wins} of {one.seeds * one.tasks}" + (f", {one.ties} ties" if one.ties else "")
    interval = f"{one.low:+.4f} to {one.high:+.4f}"
    chances = [shown(one.p, ".2g"), shown(one.holm, ".2g")]
    return [one.record, str(one.seeds), f"{one.difference:+.4f}", interval, *chances, wins]
