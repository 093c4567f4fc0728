"""What a search may judge by, and what is kept from it: two halves of a task's images.

Whoever chooses among many by the same images reports the luckiest. So a search sees a part of them, and what it chose
is judged once more on the others.
"""

from dataclasses import replace

import numpy as np

from ...methods.errors import DataError
from ..data.datasets import Task
from .record import HELD_OUT, SEARCH


def halves(task: Task, share: float, seed: int, training: bool = False) -> dict[str, Task]:
    """A task for each phase; with a share of 0 both are the task itself.

    share: of the images to judge, of each kind of defect and of the good ones alike, that the search never sees.
    training: whether the protocol judges images to learn too; these are divided likewise. The seed decides which.
    Raises DataError where a half lacks good or defective images.
    """
    if not share:
        return {SEARCH: task, HELD_OUT: task}
    rng = np.random.default_rng([seed, 0x5EED])
    test = [sample.kind for sample in task.test]
    held = _drawn(test, share, rng)
    kept = _drawn(["train"] * len(task.train), share, rng) if training else set()
    found = {}
    for phase, inside in ((SEARCH, False), (HELD_OUT, True)):
        chosen = tuple(one for n, one in enumerate(task.test) if (n in held) is inside)
        learned = tuple(p for n, p in enumerate(task.train) if (n in kept) is inside) if training else task.train
        found[phase] = replace(task, train=learned, test=chosen)
        if len({one.defect for one in chosen}) < 2 or not learned:
            raise DataError(
                f"{task.name}: too few images to judge to hold {share:g} of them out; both parts need good and "
                "defective ones. Give more images, or --holdout 0 (and what is chosen is judged by what chose it)."
            )
    return found


def _drawn(kinds: list[str], share: float, rng: np.random.Generator) -> set[int]:
    """Places of a share of each kind; of a kind with several images at least one on each side."""
    found: set[int] = set()
    for kind in sorted(set(kinds)):
        places = [n for n, one in enumerate(kinds) if one == kind]
        least, most = (1, len(places) - 1) if len(places) > 1 else (0, 1)
        count = min(max(round(share * len(places)), least), most)
        found |= {places[n] for n in rng.permutation(len(places))[:count].tolist()}
    return found
