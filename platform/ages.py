"""How old the images of a log are, though somebody may have set the clock between them. Pure but for `WallClock`.

An image goes by age (`keep_days`) where the log's times can be believed. They jump between two records

* that lie more than ten minutes back, or more than `keep_days` ahead: no work explains that;
* between which the machine's clock was set, as a running line sees by the clock that counts since the machine started.

What lies before a jump counts as made when the jump was seen: images go late, never early. A line that was running and
idle for so long says so itself (`idle_s`); of one that was switched off a person can say that the times are right.
"""

import time
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from .retention import DAY_NS

CLOCK = "clock"  # kind of the records that tell of clocks
SLACK_NS = 600 * 10**9  # clocks are put right by so much without a word


@dataclass(frozen=True)
class Jump:
    """Times jumped by `by_ns` before the record `seq`, which was made at `time_ns`."""

    seq: int
    time_ns: int
    by_ns: int


class Ages:
    """The jumps among records that are told in order."""

    def __init__(self, days: float) -> None:
        """days: as in `keep_days`; 0: no step ahead is too long."""
        self.most_ns = days * DAY_NS or float("inf")  # a step ahead that is longer needs an explanation
        self.jumps: list[Jump] = []
        self.now_ns: int | None = None  # when the newest record was made

    @classmethod
    def of(cls, records: Iterable[tuple[int, str, int, dict[str, Any]]], days: float) -> Self:
        """records: number, kind, time in ns, and data (of the kind `clock`; of others it is not looked at)."""
        ages = cls(days)
        for record in records:
            ages.add(*record)
        return ages

    def add(self, seq: int, kind: str, time_ns: int, data: dict[str, Any]) -> Jump | None:
        """The next record; returns the jump before it, if there is one."""
        if kind == "late":  # it tells of a time before
            return None
        before, self.now_ns = self.now_ns, time_ns
        said = data if kind == CLOCK else {}
        if said.get("right"):
            self.jumps.clear()
            return None
        step = 0 if before is None else time_ns - before
        if not ("by_s" in said or step < -SLACK_NS or (step > self.most_ns and "idle_s" not in said)):
            return None
        self.jumps.append(Jump(seq, time_ns, int(said.get("by_s", 0)) * 10**9 or step))
        return self.jumps[-1]

    def since(self, seq: int, time_ns: int) -> int:
        """From when on the image of record `seq`, made at `time_ns`, has its age."""
        at = bisect_right(self.jumps, seq, key=lambda jump: jump.seq)
        return self.jumps[-1].time_ns if at < len(self.jumps) else time_ns


class WallClock:
    """This machine's clock, as a running process sees it be set."""

    def __init__(self) -> None:
        self._begun_ns = self.now_ns()
        self._offset = self._begun_ns - self.up_ns()
        self.set_by_ns = 0  # so much it was set by since `forget`

    def now_ns(self) -> int:
        """Returns the time since the Unix epoch."""
        return time.time_ns()

    def up_ns(self) -> int:
        """Returns what a clock says that nobody sets, and that goes on while the machine sleeps."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic_ns()

    def was_set(self) -> bool:
        """Returns whether it was set, by more than it would be put right by."""
        offset = self.now_ns() - self.up_ns()
        if abs(offset - self._offset) > SLACK_NS:
            self.set_by_ns += offset - self._offset
        self._offset = offset
        return self.set_by_ns != 0

    def forget(self) -> None:
        """What was seen is written down."""
        self.set_by_ns = 0

    def passed_ns(self, since_ns: int | None) -> int:
        """Returns how much time has passed; 0 where this process has not seen all of it."""
        return self.now_ns() - since_ns if since_ns is not None and since_ns >= self._begun_ns else 0
