"""What has to change so that what runs equals what a fleet file says: plain data in, plain data out."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from .settings import LineSettings


@dataclass(frozen=True)
class Running:
    """A line as it runs. settings: None where its process does not say. state: see LineActor.status."""

    settings: LineSettings | None
    state: str = "running"
    problem: str = ""
    detached: bool = True  # False: it ends with the command that started it


@dataclass(frozen=True)
class Change:
    """What is done with a line, and why: stop, start, restart, keep, or leave (it is another command's)."""

    line: str
    what: str
    why: str = ""


def changes(wanted: Mapping[str, LineSettings], running: Mapping[str, Running]) -> list[Change]:
    """First what is stopped, then what is started with other settings, then what is new, then the rest; by name."""
    found = [
        *(_of(name, settings, running.get(name)) for name, settings in wanted.items()),
        *(_gone(name, one) for name, one in running.items() if name not in wanted),
    ]
    order = ("stop", "restart", "start", "keep", "leave")
    return sorted(found, key=lambda change: (order.index(change.what), change.line))


def _of(name: str, settings: LineSettings, now: Running | None) -> Change:
    if now is None:
        return Change(name, "start")
    if not now.detached:
        return Change(name, "leave", "another command runs it and will end it")
    if now.settings is None:
        return Change(name, "restart", "its process does not answer")
    if now.settings != settings:
        return Change(name, "restart", differences(now.settings, settings))
    if now.state in ("stopped", "closed"):
        return Change(name, "restart", now.problem or f"it was {now.state}")
    return Change(name, "keep")


def _gone(name: str, now: Running) -> Change:
    if not now.detached:
        return Change(name, "leave", "another command runs it and will end it")
    return Change(name, "stop", "it is not in the file")


def differences(before: LineSettings, after: LineSettings) -> str:
    """The settings that differ, in words."""
    pairs = [(field.name, getattr(before, field.name), getattr(after, field.name)) for field in fields(LineSettings)]
    return ", ".join(f"{name}: {old} -> {new}" for name, old, new in pairs if old != new)
