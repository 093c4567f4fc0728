"""Which old images may go, and which small shards become one. Pure: no disk, no clock.

An old record loses its image and nothing else: number, id, verdict and all other columns stay, so that no image is
learned twice and the audit trail has no gap. Never does an image go that is still needed:

* the two newest checkpoints must both lead to today's state: what comes behind the older one stays;
* every version that has an alias can be made again, from the newest checkpoint that is not newer than what it learned
  (its base). `bases` says which checkpoints that takes; they are kept for as long.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .manifest import Shard

NEWEST = 2  # checkpoints that recovery may need
DAY_NS = 86_400 * 10**9


@dataclass(frozen=True)
class Keep:
    """What a line's images may come to; 0: no bound. An image goes as soon as one bound says so."""

    days: float = 0.0
    records: int = 0
    bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.days or self.records or self.bytes)


def bases(checkpoints: Iterable[int], watermarks: Iterable[int]) -> set[int]:
    """Of checkpoints (numbers of their last records) those to keep: the newest two, and each version's base."""
    found = sorted(checkpoints)
    older = {max((seq for seq in found if seq <= mark), default=None) for mark in watermarks}
    return {*found[-NEWEST:], *(seq for seq in older if seq is not None)}


def first_needed(checkpoints: Iterable[int], watermarks: Iterable[int]) -> int:
    """The first record whose image is needed; 0 where there is no base for a version, or only one checkpoint."""
    found = sorted(checkpoints)
    if len(found) < NEWEST:
        return 0
    needed = [max((seq for seq in found if seq <= mark), default=-1) for mark in watermarks]
    return min(found[-NEWEST], *needed) + 1 if needed else found[-NEWEST] + 1


def may_go(at: int, shards: Sequence[Shard], keep: Keep, needed: int, newest_ns: int, now_ns: int) -> bool:
    """Whether the shard at a place may lose its images, now that those before it have.

    needed: see `first_needed`. newest_ns: time of its newest record; it is asked for by `keep.days` alone.
    """
    shard, behind = shards[at], shards[at + 1 :]
    if shard.cut or shard.first + shard.count > needed:
        return False
    return bool(
        (keep.records and sum(s.count for s in behind) >= keep.records)
        or (keep.bytes and shard.bytes + sum(s.bytes for s in behind) > keep.bytes)
        or (keep.days and newest_ns < now_ns - keep.days * DAY_NS)
    )


def to_merge(shards: Sequence[Shard], most_records: int, most_bytes: int) -> range | None:
    """The first run of two or more neighbours that fit into one shard, as long as it gets; None where there is none.

    Shards that lost their images are not put together with others. A shard that is half full is left alone: it would
    be written again for little.
    """
    start = 0
    while start < len(shards):
        stop, records, size = start, 0, 0
        while stop < len(shards) and shards[stop].cut == shards[start].cut:
            records, size = records + shards[stop].count, size + shards[stop].bytes
            short = 2 * shards[stop].count <= most_records and 2 * shards[stop].bytes <= most_bytes
            if not short or records > most_records or size > most_bytes:
                break
            stop += 1
        if stop - start > 1:
            return range(start, stop)
        start = max(stop, start + 1)
    return None
