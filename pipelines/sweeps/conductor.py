"""Which trial comes next, and when all are done: a function of what was asked and of what came of trials, not of time.

Every method and memory size has a study of its own. It asks for a generation of configurations, knowing all that came
of those before; each is a trial on every task. So a sweep on one machine or on twenty, killed or not, has the same
trials. Pure: no Ray, no disk, no clock.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .halving import cutoffs
from .objectives import OBJECTIVES, measures
from .record import COMPLETE, FAILED, HELD_OUT, SEARCH, STOPPED, Item, TrialRecord
from .settings import SweepSettings
from .space import space
from .study import Study, Told

ALL = ""  # in place of a task: all of them in sequence


@dataclass
class _Track:
    """A study with what it has asked for so far. place: among the studies."""

    place: int
    method: str
    memory: int | None
    study: Study
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    generation: int = 0  # where the one at work begins
    over: bool = False
    records: dict[tuple[int, str], TrialRecord] = field(default_factory=dict)  # by place in `asked` and task


class Conductor:
    """Hands out items and takes in their records. `tasks`: names, in order."""

    def __init__(self, settings: SweepSettings, tasks: Sequence[str]) -> None:
        self.settings = settings
        self.tasks = [ALL] if settings.together else list(tasks)
        self.objective = OBJECTIVES[settings.objective]
        self._tracks = [self._track(n, *one) for n, one in enumerate(_studies(settings))]
        self._ready: list[tuple[int, int, Item]] = []  # a heap: what was asked for first goes first
        self._out: dict[int, tuple[_Track, int, Item]] = {}  # by number, what has no record yet
        self.searched = len(self._tracks) * settings.samples * len(self.tasks)  # trials that choose, as far as known
        self.judged = 0  # trials on images that were held out, as far as known
        for track in self._tracks:
            self._ask(track)

    @property
    def finished(self) -> bool:
        """Whether every trial has its record."""
        return all(track.over for track in self._tracks) and not self._ready and not self._out

    @property
    def open(self) -> list[Item]:
        """The trials that have no record yet, of those that are known."""
        return [item for _, _, item in self._out.values()]

    def next(self) -> Item | None:
        """The next trial; None where there is none before others have their records."""
        return heapq.heappop(self._ready)[2] if self._ready else None

    def back(self, item: Item) -> None:
        """Takes back an item that nobody works on: `next` will give it again."""
        _, place, _ = self._out[item.number]
        heapq.heappush(self._ready, (place, item.number, item))

    def done(self, record: TrialRecord) -> None:
        """Takes in what came of an item that `next` gave."""
        item = record.item
        track, place, _ = self._out.pop(item.number)
        if item.phase == HELD_OUT:
            return
        track.records[place, item.task] = record
        waiting = any((n, task) not in track.records for n in range(len(track.asked)) for task in self.tasks)
        if not waiting:
            track.study.tell([self._told(track, n) for n in range(track.generation, len(track.asked))])
            self._ask(track)

    def _track(self, place: int, method: str, memory: int | None) -> _Track:
        s = self.settings
        fixed = s.fixed(method, memory)
        dimensions = space(method, fixed, s.search) if s.samples > 1 else []
        study = Study(
            dimensions, fixed, samples=s.samples, seed=s.seed, generation=s.generation, higher=self.objective.higher
        )
        return _Track(place, method, memory, study)

    def _ask(self, track: _Track) -> None:
        """The next generation of a study; behind the last one, what it chose is judged on the images held out."""
        track.generation = len(track.asked)
        asked = track.study.ask()
        track.asked += asked
        if not asked:
            track.over = True
            self.searched -= (self.settings.samples - len(track.asked)) * len(self.tasks)  # a small space, exhausted
            if self.settings.holdout:
                self._hold_out(track)
            return
        limits = {task: self._cutoffs(track, task) for task in self.tasks}
        for place in range(track.generation, len(track.asked)):
            for task in self.tasks:
                self._put(track, place, task, SEARCH, limits[task])

    def _hold_out(self, track: _Track) -> None:
        """The best configuration, that of each task alone and, to tell what the search has won, the defaults."""
        whole = self._best(track, self.tasks)
        if whole is None:
            return
        defaults = {0} if all(track.records[0, task].status == COMPLETE for task in self.tasks) else set()
        wanted = {(place, task) for place in {whole, *defaults} for task in self.tasks}
        for task in self.tasks:
            own = self._best(track, [task])
            wanted |= set() if own is None else {(own, task)}
        for place, task in sorted(wanted):
            self._put(track, place, task, HELD_OUT, {})
        self.judged += len(wanted)

    def _best(self, track: _Track, tasks: Sequence[str]) -> int | None:
        """Of the configurations that are complete on these tasks the best; as `Outcome.ranked` has it."""
        ranks = []
        for place in range(len(track.asked)):
            found = [track.records[place, task] for task in tasks]
            if all(one.status == COMPLETE and not math.isnan(one.objective) for one in found):
                mean = sum(one.objective for one in found) / len(found)
                size = sum(measures(one.result)["state_bytes"] for one in found if one.result) / len(found)
                ranks.append((-mean if self.objective.higher else mean, size, place))
        return min(ranks)[2] if ranks else None

    def _put(self, track: _Track, place: int, task: str, phase: str, limits: Mapping[int, float]) -> None:
        configuration = place * len(self._tracks) + track.place  # numbers that do not depend on how many are asked for
        number = 2 * (configuration * len(self.tasks) + self.tasks.index(task)) + (phase == HELD_OUT)
        item = Item(number, configuration, track.method, track.memory, track.asked[place], task, phase, limits)
        self._out[number] = (track, place, item)
        heapq.heappush(self._ready, (place, number, item))

    def _cutoffs(self, track: _Track, task: str) -> dict[int, float]:
        if not self.objective.curve:
            return {}
        earlier = [track.records[n, task].points for n in range(track.generation)]
        return cutoffs(earlier, self.settings.reduction)

    def _mean(self, track: _Track, place: int) -> float:
        """Of the objective over tasks; NaN unless all of them are complete."""
        found = [track.records[place, task] for task in self.tasks]
        return (
            sum(one.objective for one in found) / len(found) if all(r.status == COMPLETE for r in found) else math.nan
        )

    def _told(self, track: _Track, place: int) -> Told:
        """What the study hears of a configuration."""
        found = [track.records[place, task] for task in self.tasks]
        if any(one.status == FAILED for one in found):
            return Told(FAILED)
        if any(one.status == STOPPED for one in found):
            last = [one.points[-1] for one in found if one.status == STOPPED]
            return Told(STOPPED, sum(value for _, _, value in last) / len(last), min(at for at, _, _ in last))
        mean = self._mean(track, place)
        return Told(FAILED) if math.isnan(mean) else Told(COMPLETE, mean)


def _studies(settings: SweepSettings) -> list[tuple[str, int | None]]:
    """Methods with their memory sizes, in the order of the command line."""
    return [(name, size) for name in settings.methods for size in settings.sizes(name)]
