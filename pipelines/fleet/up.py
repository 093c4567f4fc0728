"""`everline up`, `down` and `status`: what runs is made equal to what the fleet file says."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ...deploy.server import end_orphan
from ...methods.errors import EverlineError
from ...platform.actor import check_room
from ...platform.changes import Change, astray, changes
from ...platform.cluster import address, disconnect
from ...platform.crew import Seen, carry_out, look, look_elsewhere
from ...platform.head import join, leave
from ...platform.log import line_folder
from ...platform.settings import Fleet, read_fleet
from ...platform.trouble import read_trouble
from ..console import ERR, OUT, fleet_option, json_option, show_table, terminable, write_json
from ..files import FilePath
from .lines import ready_for_lines

DONE = {"start": "started", "restart": "started again", "stop": "stopped", "keep": "runs", "leave": "left alone"}
COLUMNS = ("line", "state", "version", "records", "learned", "waiting", "dropped", "node")
fleet_argument = click.argument("named", metavar="[FLEET.yaml]", type=FilePath(), required=False)


@click.command()
@fleet_argument
@fleet_option
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
def up(named: Path | None, fleet_file: Path, dry_run: bool, json_file: Path | None) -> None:
    """Make what runs equal to what the fleet file says: start, stop and change its lines.

    The lines go on when this command has ended, in the Ray cluster of RAY_ADDRESS, or that of this machine (started
    where there is none). Lines of the same store that are not in the file are stopped. Exit status 1: some line could
    not be brought up; the others were.
    """
    fleet = read_fleet(named or fleet_file)
    told: list[dict[str, Any]] = []
    if not dry_run:
        ready_for_lines(fleet)
    joined = join(start=not dry_run)
    with terminable():  # behind `join`: Ray puts a handler of its own in place of ours
        try:
            if joined:
                _say(f"started a Ray cluster on this machine ({address()}); `everline down` ends it with the lines")
            plan = changes(fleet.lines, {}) if joined is None else _plan(fleet)
            well = dry_run or carry_out(plan, fleet, lambda change, error: told.append(_tell(change, error)))
            if dry_run:
                told = [_foreseen(change, fleet, joined is not None) for change in plan]
        finally:
            disconnect()
    _sum_up(told, dry_run, json_file)
    if not well:
        raise SystemExit(1)


@click.command()
@click.argument("lines", metavar="[LINE]...", nargs=-1)
@fleet_option
@json_option
def down(lines: tuple[str, ...], fleet_file: Path, json_file: Path | None) -> None:
    """Stop lines of a fleet, all of them if none is named; each learns what is pending and saves a checkpoint.

    Without LINE, the Ray cluster that `everline up` started ends too, unless something else runs in it. In place of
    lines, a fleet file may be named.
    """
    if len(lines) == 1 and (one := Path(lines[0])).suffix in (".yaml", ".yml"):
        lines, fleet_file = (), one
    fleet = read_fleet(fleet_file)
    told: list[dict[str, Any]] = []
    well = True
    joined = join(start=False)
    with terminable():
        try:
            if joined is not None:
                plan = _stops(lines, fleet)
                well = carry_out(plan, fleet, lambda change, error: told.append(_tell(change, error)))
                if not lines:
                    if end_orphan():
                        _say("a server whose command is gone has ended")
                    why = leave()
                    _say(f"the Ray cluster goes on: {why}" if why else "the Ray cluster has ended")
        finally:
            disconnect()
    _sum_up(told, False, json_file)
    if not well:
        raise SystemExit(1)


@click.command()
@fleet_argument
@fleet_option
@json_option
def status(named: Path | None, fleet_file: Path, json_file: Path | None) -> None:
    """What runs of a fleet, and why the rest does not. Exit status 1: a line of the file does not run."""
    fleet = read_fleet(named or fleet_file)
    try:
        there = join(start=False) is not None
        seen = look(fleet.store, patience_s=5) if there else {}
        elsewhere = look_elsewhere(fleet) if there else []
    finally:
        disconnect()
    rows = [_state(name, fleet, seen.get(name)) for name in sorted({*fleet.lines, *seen})]
    rows += [_state(name, fleet, one) for lines in elsewhere for name, one in lines.items()]
    write_json(rows, json_file)
    if str(json_file) != "-":
        show_table("lines", COLUMNS, [[row.get(column) for column in COLUMNS] for row in rows])
        for row in rows:
            for text in filter(None, (row["problem"], row.get("advice"))):
                OUT.print(f"{row['line']}: {text}", markup=False, highlight=False, soft_wrap=True)
    if not all(row["state"] in ("running", "busy", "opening") for row in rows if row["line"] in fleet.lines):
        raise SystemExit(1)


def _plan(fleet: Fleet) -> list[Change]:
    """First what was started from this file when it named another store: both may publish in the same MLflow."""
    return [*_astray(fleet), *changes(fleet.lines, _running(fleet), fleet.places)]


def _astray(fleet: Fleet) -> list[Change]:
    every = [{name: one.running for name, one in lines.items()} for lines in look_elsewhere(fleet)]
    return [change for running in every for change in astray(running)]


def _running(fleet: Fleet) -> dict[str, Any]:
    return {name: one.running for name, one in look(fleet.store).items()}


def _stops(lines: Sequence[str], fleet: Fleet) -> list[Change]:
    """A stop for each line that runs. Raises UnknownLine for a name that is neither in the file nor running."""
    found = [*_astray(fleet), *changes({}, _running(fleet))]
    for name in lines:
        if name not in {change.line for change in found}:
            fleet.line(name)
            _say(f"{name}: does not run")
    chosen = [change for change in found if not lines or change.line in lines]
    return [replace(change, why="") if change.what == "stop" and not change.store else change for change in chosen]


def _foreseen(change: Change, fleet: Fleet, joined: bool) -> dict[str, Any]:
    """What a dry run can say: also that no node has what a line asks for."""
    problem = ""
    if joined and change.what in ("start", "restart"):
        try:
            check_room(change.line, fleet.lines[change.line])
        except EverlineError as error:
            problem = str(error)
    why = f" ({change.why})" if change.why else ""
    _say(f"{change.line}: {change.what}{why}{f'; but {problem}' if problem else ''}")
    return {"line": change.line, "what": change.what, "why": change.why, "problem": problem}


def _tell(change: Change, error: EverlineError | None) -> dict[str, Any]:
    why = f" ({change.why})" if change.why else ""
    if error is None:
        _say(f"{change.line}: {DONE[change.what]}{why}")
    else:
        verb = "stopped, but not closed" if change.what == "stop" else "could not be started"
        ERR.print(f"{change.line}: {verb}{why}: {error}", markup=False, highlight=False, soft_wrap=True)
    return {"line": change.line, "what": change.what, "why": change.why, "problem": str(error or "")}


def _sum_up(told: list[dict[str, Any]], dry_run: bool, json_file: Path | None) -> None:
    write_json(sorted(told, key=lambda one: one["line"]), json_file)
    if not any(one["what"] in ("start", "restart", "stop") for one in told):
        _say("nothing would change" if dry_run else "nothing changed")


def _state(name: str, fleet: Fleet, seen: Seen | None) -> dict[str, Any]:
    """A row: of a line that runs, or of one that does not and what is known of its end."""
    if seen is None:
        error = read_trouble(line_folder(fleet.store, name)).error
        method = fleet.lines[name].method
        return {"line": name, "method": method, "state": "down", "problem": error and f"it failed last with: {error}"}
    known, places = dict(seen.status), seen.origin
    state = known.get("state", "lost")
    problem = known.get("problem", "")
    if state == "lost":
        problem = "its process does not answer; Ray starts it again as soon as a node has room for it"
    elif places.get("store", str(fleet.store)) != str(fleet.store):
        problem = f"it writes to another store than the file says, {places['store']}; `everline up` would end it"
    elif name not in fleet.lines:
        problem = problem or "it is not in the file; `everline up` would stop it"
    elif seen.settings != fleet.lines[name]:
        problem = problem or "it runs with other settings than the file's; `everline up` would change it"
    elif any(places.get(one, where) != where for one, where in fleet.places.items()):
        problem = problem or "it keeps its versions elsewhere than the file says; `everline up` would change it"
    return {
        **known,
        "line": name,
        "state": state,
        "problem": problem,
        "learned": known.get("images_learned"),
        "process": known.get("pid"),
        "node": known["node"][:8] if "node" in known else None,
    }


def _say(text: str) -> None:
    """To people, on standard error: standard output may be JSON."""
    ERR.print(text, markup=False, highlight=False, soft_wrap=True)
