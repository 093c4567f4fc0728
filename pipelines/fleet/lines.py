"""`everline lines`, `versions`, `rollback`, `log` and `store`: looking at a fleet and its logs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ...methods.errors import StoreError, TrackingError, UnknownLine
from ...platform.actor import answer, line_handle, start_line
from ...platform.cluster import connect, disconnect
from ...platform.cluster_watch import ending_with_the_cluster
from ...platform.log import LogReader, has_log, line_folder, verify
from ...platform.rebuild import Rebuilt, rebuild
from ...platform.repair import lost_end, repair
from ...platform.restore_versions import restore_versions
from ...platform.settings import Fleet, read_fleet
from ...platform.tracking import prepare_tracking, public, relocate
from ...platform.versions import PINNED, Versions
from ..console import ERR, OUT, fleet_option, json_option, progress, show_table, teller, user, write_json
from . import log_clock, log_export, log_speed


@click.command()
@fleet_option
@json_option
def lines(fleet_file: Path, json_file: Path | None) -> None:
    """The lines of a fleet: method, records in the log, current version."""
    fleet = read_fleet(fleet_file)
    prepare_tracking(fleet.tracking, artifacts=fleet.artifacts)
    found = []
    for name, settings in fleet.lines.items():
        reader = LogReader(line_folder(fleet.store, name))
        found.append(
            {
                "line": name,
                "method": settings.method,
                "records": len(reader),
                "inspected": reader.count("image"),
                "version": Versions(fleet.tracking, name).current(),
            }
        )
    write_json(found, json_file)
    if str(json_file) != "-":
        show_table("lines", list(found[0]), [list(row.values()) for row in found])


@click.command()
@click.argument("line")
@click.option(
    "--rebuild", "number", type=int, metavar="V", help="Make version V again from the log; compare all bits."
)
@click.option(
    "--restore", is_flag=True, help="Register versions again that MLflow has lost, as the log says they were."
)
@click.option("--pin", type=int, metavar="V", help="Keep version V, however old (see the line's keep_versions).")
@click.option("--unpin", type=int, metavar="V", help="Keep version V no longer than others.")
@fleet_option
@json_option
def versions(
    line: str,
    number: int | None,
    restore: bool,
    pin: int | None,
    unpin: int | None,
    fleet_file: Path,
    json_file: Path | None,
) -> None:
    """The published versions of LINE, newest first.

    --rebuild V folds the line's log from its first record as the version says that it was made, and compares the bits
    with those that MLflow holds; the line may run meanwhile. Exit status 1: they differ, or the log alone did not make
    that version.

    --restore is for an MLflow whose database was lost: the line does not start without its current version. The log is
    folded once, and a version registered under its old number where all its bits are as they were. Exit status 1: not
    all could be had.
    """
    fleet = _fleet_with(line, fleet_file)
    if restore:
        _restore(line, fleet, json_file)
        return
    if number is not None:
        _prove(line, number, fleet, json_file)
        return
    kept = Versions(fleet.tracking, line)
    for version, pinned in ((pin, True), (unpin, False)):
        if version is not None:
            kept.pin(version, pinned)
    found = [asdict(version) for version in kept.list()]
    write_json(found, json_file)
    if str(json_file) != "-":
        columns = ["version", "alias", "learned", "threshold", "calibrated", "made (UTC)"]
        show_table(
            f"versions of {line}",
            columns,
            [
                (
                    v["version"],
                    ", ".join([*v["aliases"], *(["pinned"] if v["tags"].get(PINNED) == "true" else [])]),
                    v["images_learned"],
                    v["threshold"],
                    "yes" if v["calibrated"] else "no",
                    datetime.fromtimestamp(v["created_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M"),
                )
                for v in found
            ],
        )


@click.command()
@click.argument("line")
@click.argument("version", type=int, required=False)
@fleet_option
@json_option
def rollback(line: str, version: int | None, fleet_file: Path, json_file: Path | None) -> None:
    """Make VERSION of LINE current again; without VERSION, the one before the current one."""
    fleet = _fleet_with(line, fleet_file)
    number = ask_line(line, fleet, lambda handle: handle.rollback.remote(version))
    write_json({"line": line, "version": number}, json_file)
    if str(json_file) != "-":
        OUT.print(f"{line}: version {number} is current")


@click.command()
@click.argument("line")
@click.argument("task")
@fleet_option
@json_option
def switch(line: str, task: str, fleet_file: Path, json_file: Path | None) -> None:
    """From the next image on LINE inspects the product TASK, be it new or back again.

    A record in the line's log says so, and the images that follow carry the name. Said twice it changes nothing.
    """
    fleet = read_fleet(fleet_file)
    fleet.line(line)
    ready_for_lines(fleet)
    number = ask_line(line, fleet, lambda handle: handle.switch.remote(task))
    write_json({"line": line, "task": task, "record": number}, json_file)
    if str(json_file) != "-":
        OUT.print(f"{line}: the task is {task} (record {number})", markup=False, highlight=False)


@click.command()
@click.argument("line")
@click.argument("id")
@click.argument("label", type=click.Choice(["ok", "defect"]))
@click.option("--by", default="", help="Who says so; it stands in the record.")
@fleet_option
@json_option
def feedback(line: str, id: str, label: str, by: str, fleet_file: Path, json_file: Path | None) -> None:
    """Say of image ID of LINE that it is ok, or has a defect; the last word counts.

    A rejected image that is ok is learned, and the threshold takes note of it.
    """
    fleet = _fleet_with(line, fleet_file)
    given = ask_line(line, fleet, lambda handle: handle.feedback.remote(id, label, by))
    write_json({"line": line, "id": id, **given}, json_file)
    if str(json_file) != "-":
        changed = " (it was another word before)" if given["changed"] else ""
        OUT.print(f"{line}: {id} is {label}, record {given['record']}{changed}", markup=False, highlight=False)


@click.group()
def log() -> None:
    """Look into a line's log."""


log.add_command(log_clock.clock)
log.add_command(log_export.export)
log.add_command(log_speed.speed)


@log.command("verify")
@click.argument("line")
@fleet_option
@json_option
def verify_log(line: str, fleet_file: Path, json_file: Path | None) -> None:
    """Check every checksum of LINE's log, the order of its records, and that no image is in it twice.

    Its end is compared with what checkpoints and MLflow know.
    """
    fleet = read_fleet(fleet_file)
    fleet.line(line)
    folder = line_folder(fleet.store, line)
    found = verify(folder)
    lost = lost_end(LogReader(folder), _live(line, fleet)) if found.ok else None
    if lost:
        found = replace(found, ok=False, problems=[str(lost)])
    elif not has_log(folder):
        raise StoreError(f"line {line} has no log in {fleet.store} yet: nothing was ever sent to it.")
    write_json(asdict(found), json_file)
    if str(json_file) != "-":
        OUT.print(f"{line}: {found.records} records, {found.inspected} images, {found.unique} different ids")
        for problem in found.problems:
            OUT.print(f"  {problem}", markup=False)
        OUT.print("ok" if found.ok else "not ok")
    if not found.ok:
        raise SystemExit(1)


@log.command("repair")
@click.argument("line")
@click.option("--accept-loss", is_flag=True, help="Go on without the records that no file has; the log says so.")
@click.option("--by", default=user, show_default="who is logged in", help="Who says so; it stands in the log.")
@fleet_option
@json_option
def repair_log(line: str, accept_loss: bool, by: str, fleet_file: Path, json_file: Path | None) -> None:
    """Make the manifest of LINE's log again from the files that are left, and say what is lost.

    End what writes the log before. A log that misses nothing stays as it is.
    """
    fleet = read_fleet(fleet_file)
    fleet.line(line)
    done = repair(line_folder(fleet.store, line), _live(line, fleet), accept_loss, by)
    write_json(asdict(done), json_file)
    if str(json_file) == "-":
        return
    for problem in done.unreadable:
        OUT.print(f"  cannot be read: {problem}", markup=False)
    for first, last in done.missing:
        OUT.print(f"  lost: records {first} to {last}", highlight=False)
    made = f"its manifest was made again from {', '.join(done.files)}" if done.files else "its manifest is whole"
    OUT.print(f"{line}: {done.records} records; {made}", highlight=False, soft_wrap=True)


@click.group()
def store() -> None:
    """The place where a fleet keeps its logs and versions."""


@store.command("relocate")
@fleet_option
@json_option
def relocate_store(fleet_file: Path, json_file: Path | None) -> None:
    """After a store was moved or copied: have MLflow's own pages and `models:/...` find the versions' files too.

    everline itself finds them without. End what writes to the store before.
    """
    tracking = read_fleet(fleet_file).tracking
    old, new = relocate(tracking)
    write_json({"tracking": public(tracking), "from": old, "to": new}, json_file)
    if str(json_file) != "-":
        OUT.print(f"{old} -> {new}", markup=False, highlight=False, soft_wrap=True)


def _live(line: str, fleet: Fleet) -> dict[int, int]:
    """Versions in use and what they have seen; none where MLflow does not answer, which is told."""
    try:
        prepare_tracking(fleet.tracking, artifacts=fleet.artifacts)
        return Versions(fleet.tracking, line).live()
    except TrackingError as error:
        ERR.print(f"{error}\nThe log's end is not compared with its versions.", markup=False, soft_wrap=True)
        return {}


def ready_for_lines(fleet: Fleet) -> None:
    """Prepares the tracking store. A server that does not answer is told of: lines go on without one.

    Raises ConfigError, and TrackingError where the store is a file.
    """
    try:
        prepare_tracking(fleet.tracking, artifacts=fleet.artifacts)
    except TrackingError as error:
        if fleet.tracking.startswith("sqlite:"):
            raise
        ERR.print(f"{error}\nLines go on; versions wait in their logs.", markup=False, soft_wrap=True)


@contextmanager
def connected() -> Iterator[None]:
    """Connected to Ray meanwhile. Where its cluster dies, the command ends with an error."""
    own = connect()
    try:
        with ending_with_the_cluster(lambda text: ERR.print(f"error: {text}", markup=False, soft_wrap=True), own):
            yield
    finally:
        disconnect()


def ask_line(line: str, fleet: Fleet, ask: Callable[[Any], Any]) -> Any:
    """What a line answers; one that does not run is started for it, and closed. ask: handle -> reference."""
    connect()
    try:
        try:
            handle, started = line_handle(line, fleet.store), False
        except UnknownLine:
            handle, started = start_line(line, fleet)
        answered = answer(ask(handle))
        if started:
            answer(handle.close.remote())
        return answered
    finally:
        disconnect()


def _fleet_with(line: str, fleet_file: Path) -> Fleet:
    fleet = read_fleet(fleet_file)
    fleet.line(line)
    prepare_tracking(fleet.tracking, artifacts=fleet.artifacts)
    return fleet


def _prove(line: str, number: int, fleet: Fleet, json_file: Path | None) -> None:
    reader = LogReader(line_folder(fleet.store, line))
    with progress() as bars:
        kept = Versions(fleet.tracking, line)
        found = rebuild(kept, number, reader, fleet.line(line), teller(bars, f"{line} version {number}"))
    write_json(found.to_json(), json_file)
    if str(json_file) != "-":
        _show_rebuilt(found)
    if not found.equal:
        raise SystemExit(1)


def _restore(line: str, fleet: Fleet, json_file: Path | None) -> None:
    reader = LogReader(line_folder(fleet.store, line))
    with progress() as bars:
        kept = Versions(fleet.tracking, line, fleet.artifacts)
        done = restore_versions(kept, reader, fleet.line(line), teller(bars, f"{line} versions"))
    write_json(done.to_json(), json_file)
    if str(json_file) != "-":
        for number, why in done.lost.items():
            ERR.print(f"version {number} was not registered: {why}", markup=False, highlight=False, soft_wrap=True)
        OUT.print(
            f"{line}: {len(done.restored)} versions registered again, {len(done.known)} were there, "
            f"{len(done.lost)} are lost; current: {done.current or 'none'}",
            highlight=False,
        )
    if done.lost:
        raise SystemExit(1)


def _show_rebuilt(found: Rebuilt) -> None:
    says = {True: "equal to the last bit", False: "NOT equal", None: "cannot be proved"}[found.equal]
    about = f": {found.images_learned} images of {found.records} records" if found.published else ""
    OUT.print(f"{found.line}: version {found.version} rebuilt from the log is {says}{about}", highlight=False)
    for sentence in (*found.differences, *found.caveats):
        OUT.print(f"  {sentence}", markup=False, highlight=False, soft_wrap=True)
    if found.equal is False and found.published:
        OUT.print("  what was rebuilt is what was published: what MLflow holds was changed since", highlight=False)
