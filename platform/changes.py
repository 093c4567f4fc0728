"""What has to change so that what runs equals what a fleet file says: plain data in, plain data out."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from .settings import LineSettings


@dataclass(frozen=True)
class Running:
    """A line as it runs. settings: None where its process does not say. state: see LineActor.status."""

    settings: LineSettings | None
    state: str = "running"
    problem: str = ""
    detached: bool = True  # False: it ends with the command that started it
    places: Mapping[str, str] = field(default_factory=dict)  # with those of `Fleet.places`; empty: not known


@dataclass(frozen=True)
class Change:
    """What is done with a line, and why: stop, start, restart, keep, or leave (it is another command's).

    store: the one that it writes to, where that is not the fleet's.
    """

    line: str
    what: str
    why: str = ""
    store: str = ""


def changes(
    wanted: Mapping[str, LineSettings], running: Mapping[str, Running], places: Mapping[str, str] | None = None
) -> list[Change]:
    """First what is stopped, then what is started with other settings, then what is new, then the rest; by name.

    places: the fleet's, if a line that keeps what it knows elsewhere is to be started again.
    """
    found = [
        *(_of(name, settings, running.get(name), places or {}) for name, settings in wanted.items()),
        *(_gone(name, one) for name, one in running.items() if name not in wanted),
    ]
    order = ("stop", "restart", "start", "keep", "leave")
    return sorted(found, key=lambda change: (order.index(change.what), change.line))


def astray(running: Mapping[str, Running]) -> list[Change]:
    """What is done with lines that were started from the fleet's file and write to another store than it says now."""
    found = [_gone(name, one) for name, one in running.items()]
    stores = [one.places["store"] for one in running.values()]
    said = "it writes to another store than the file says, {}"
    return [
        replace(change, store=store, why=said.format(store) if change.what == "stop" else change.why)
        for change, store in zip(found, stores, strict=True)
    ]


def _of(name: str, settings: LineSettings, now: Running | None, places: Mapping[str, str]) -> Change:
    if now is None:
        return Change(name, "start")
    if not now.detached:
        return Change(name, "leave", "another command runs it and will end it")
    if now.settings is None:
        return Change(name, "restart", "its process does not answer")
    if now.settings != settings:
        return Change(name, "restart", differences(now.settings, settings))
    if moved := [f"{n}: {now.places[n]} -> {places[n]}" for n in places if now.places.get(n, places[n]) != places[n]]:
        return Change(name, "restart", ", ".join(moved))
    if now.state in ("stopped", "closed"):
        return Change(name, "restart", now.problem or f"it was {now.state}")
    return Change(name, "keep")


def _gone(name: str, now: Running) -> Change:
    if not now.detached:
        return Change(name, "leave", "another command runs it and will end it")
    return Change(name, "stop", "it is not in the file")


def differences(before: LineSettings, after: LineSettings) -> str:
    """The settings that differ, in words."""
    pairs = [(one.name, getattr(before, one.name), getattr(after, one.name)) for one in fields(LineSettings)]
    return ", ".join(f"{name}: {old} -> {new}" for name, old, new in pairs if old != new)
