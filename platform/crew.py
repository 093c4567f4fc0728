"""The lines of a fleet that run in the cluster at hand: looked at, started, stopped. Thin: changes.py decides."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from ..methods.errors import ConfigError, EverlineError, LineDown, LineStopped, SecondWriter, UnknownLine
from .actor import LINE, NAMESPACE, actor_name, answer, check_room, line_handle, start_line
from .changes import Change, Running
from .log import line_folder
from .settings import Fleet, LineSettings
from .trouble import failed
from .volume import Place, place_of

ANSWER_S = 30.0  # for a process that Ray may be starting again to say anything at all
LOOK_S = 3.0  # for a line that is at work to say how it stands
CLOSE_S = 120.0
FREE_S = 20.0  # for a name, or a log, to become free after its process has ended
STARTS = 8  # lines that are started at once
Told = Callable[[Change, EverlineError | None], None]


@dataclass(frozen=True)
class Seen:
    """A running line. settings, status, origin: None, {}, {} where its process did not answer."""

    settings: LineSettings | None = None
    status: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)  # as `LineActor.origin`; {} of an older everline

    @property
    def running(self) -> Running:
        """What a plan needs of it."""
        say = self.status.get
        state, problem, detached = say("state", "lost"), say("problem", ""), say("detached", True)
        return Running(self.settings, state, problem, detached, self.origin)


def look(store: Place, patience_s: float = ANSWER_S) -> dict[str, Seen]:
    """All running lines whose logs are in `store`, whatever file they were started from."""
    prefix = actor_name("", store)
    return {name.removeprefix(prefix): seen for name, seen in _seen(prefix, "", patience_s).items()}


def look_elsewhere(fleet: Fleet, patience_s: float = LOOK_S) -> list[dict[str, Seen]]:
    """Running lines that were started from the fleet's file when it named another store; store by store."""
    found: dict[str, dict[str, Seen]] = {}
    for seen in _seen(LINE, actor_name("", fleet.store), patience_s).values():
        if fleet.file and seen.origin.get("file") == fleet.file:
            found.setdefault(seen.origin["store"], {})[seen.origin["line"]] = seen
    return list(found.values())


def _seen(prefix: str, but: str, patience_s: float) -> dict[str, Seen]:
    """Lines by the names of their actors, which begin with `prefix` and not with `but`."""
    named = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True) if one["namespace"] == NAMESPACE]
    give_up = time.monotonic() + patience_s
    asked: dict[str, tuple[Any, Any, Any]] = {}
    for name in sorted(name for name in named if name.startswith(prefix) and not (but and name.startswith(but))):
        try:
            handle = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:  # it has just ended
            continue
        origin = handle.origin.remote() if hasattr(handle, "origin") else None
        asked[name] = handle.settings.remote(), handle.status.remote(LOOK_S), origin
    return {
        name: Seen(
            _soon(settings, give_up),
            _soon(status, give_up + LOOK_S) or {},
            (origin and _soon(origin, give_up)) or {},
        )
        for name, (settings, status, origin) in asked.items()
    }


def carry_out(plan: list[Change], fleet: Fleet, told: Told) -> bool:
    """Makes the changes: all that is to end first, since it frees what others need. Whether all went well.

    One that fails takes no other along. `told` hears of each change when it is made, and what kept it from that.
    """
    well = True

    def one(change: Change, work: Callable[[str, Fleet], Any]) -> EverlineError | None:
        try:
            work(change.line, replace(fleet, store=place_of(change.store)) if change.store else fleet)
            return None
        except EverlineError as error:
            return error

    def heard(change: Change, error: EverlineError | None) -> None:
        nonlocal well
        well = well and error is None
        told(change, error)

    with ThreadPoolExecutor(STARTS) as pool:
        works = {"stop": stop_line, "restart": _end}
        ending = {pool.submit(one, c, works[c.what]): c for c in plan if c.what in works}
        stays = set()
        for future in as_completed(ending):
            change, error = ending[future], future.result()
            if change.what == "stop" or isinstance(error, ConfigError):
                heard(change, error)
                stays |= set() if change.store else {change.line}
        starting = {
            pool.submit(one, c, _start): c for c in plan if c.what in ("start", "restart") and c.line not in stays
        }
        for future in as_completed(starting):
            heard(starting[future], future.result())
    for change in plan:
        if change.what in ("keep", "leave"):
            told(change, None)
    return well


def stop_line(name: str, fleet: Fleet) -> None:
    """Closes a line and ends its process. Raises the error of closing it; nothing acknowledged is lost by that."""
    handle = line_handle(name, fleet.store)
    try:
        answer(handle.close.remote(), CLOSE_S)
    except LineDown:  # there is no process to close, or it hangs: its log is as good as after a crash
        pass
    finally:
        ray.kill(handle)
        give_up = time.monotonic() + FREE_S
        while _there(name, fleet.store) and time.monotonic() < give_up:
            time.sleep(0.05)


def _start(name: str, fleet: Fleet) -> None:
    """A process that was ended without closing its log may have it for a moment longer. What fails is noted."""
    give_up = time.monotonic() + FREE_S
    while True:
        try:
            start_line(name, fleet, detached=True)
            return
        except SecondWriter:
            if time.monotonic() > give_up:
                raise
            time.sleep(1)
        except (ConfigError, LineDown) as error:
            if not isinstance(error, LineStopped):
                failed(line_folder(fleet.store, name), error)
            raise


def _end(name: str, fleet: Fleet) -> None:
    """Before a start with other settings. Raises ConfigError where no node could take it with these: it goes on."""
    check_room(name, fleet.line(name))
    stop_line(name, fleet)


def _there(name: str, store: Place) -> bool:
    try:
        line_handle(name, store)
    except UnknownLine:
        return False
    return True


def _soon(ref: Any, until: float) -> Any:
    try:
        return answer(ref, max(0.1, until - time.monotonic()))
    except EverlineError:
        return None
