"""`everline promote`: a line's candidate and its gate."""

from pathlib import Path
from typing import Any

import click

from ...methods.errors import UnknownVersion
from ...platform.gate import Decision, Limits, decide
from ...platform.line import Scorer
from ...platform.log import LogReader, line_folder
from ...platform.settings import Fleet, read_fleet
from ...platform.threads import threads
from ...platform.tracking import prepare_tracking
from ...platform.versions import Versions
from ..console import OUT, fleet_option, json_option, progress, teller, write_json
from ..files import FilePath
from ..options import ManyValues, read_sources
from .evidence import Chosen, from_folders, from_log, judge
from .lines import ask_line


@click.command(cls=ManyValues)
@click.argument("line")
@click.option(
    "--data", "folders", multiple=True, type=FilePath(), metavar="DIR...",
    help="Folders in MVTec layout, whose test images are judged; else the line's own records that nobody learned.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Decide on fewer normal images than the promised rate needs.")
@fleet_option
@json_option
def promote(line: str, folders: tuple[Path, ...], force: bool, fleet_file: Path, json_file: Path | None) -> None:
    """Make the candidate of LINE current, if its gate lets it through.

    Candidate and current version judge the same images. The candidate must keep the false-reject rate that the line
    promises, and be clearly worse in neither false rejects nor recall. Exit status 1: held, and nothing changed.
    """
    fleet = read_fleet(fleet_file)
    fleet.line(line)
    prepare_tracking(fleet.tracking, artifacts=fleet.artifacts)
    versions = Versions(fleet.tracking, line)
    candidate, current = versions.candidate(), versions.current()
    if candidate is None:
        raise UnknownVersion(f"line {line}: no version waits as candidate; see everline versions {line}.")
    chosen = _chosen(line, fleet, versions, (candidate, current), folders)
    decision = _decided(line, fleet, versions, (candidate, current), chosen, force)
    says = [*decision.reasons, *([chosen.caveat] if chosen.caveat else [])]
    versions.tag(candidate, {"gate": decision.word, "gate_reasons": "; ".join(says)})
    if decision.promote:
        ask_line(line, fleet, lambda handle: handle.promote.remote(candidate, current))
    found = {
        "line": line,
        "candidate": candidate,
        "current": current,
        "images": chosen.counts,
        "caveat": chosen.caveat,
        **decision.to_json(),
    }
    write_json(found, json_file)
    if str(json_file) != "-":
        _show(found)
    if not decision.promote:
        raise SystemExit(1)


def _chosen(
    line: str, fleet: Fleet, versions: Versions, numbers: tuple[int | None, ...], folders: tuple[Path, ...]
) -> Chosen:
    """The images of the folders, or those of the log that none of the versions has learned from."""
    if folders:
        return from_folders(read_sources(folders, None, None))
    learned = max(version.watermark for version in versions.list() if version.version in numbers)
    return from_log(LogReader(line_folder(fleet.store, line)), learned, bits=fleet.line(line).bits)


def _decided(
    line: str, fleet: Fleet, versions: Versions, numbers: tuple[int, int | None], chosen: Chosen, force: bool
) -> Decision:
    settings = fleet.line(line)
    scorers = [Scorer(n, *versions.load(n), settings.device) for n in numbers if n is not None]
    with threads(settings.threads), progress() as bars:
        candidate, *current = judge(scorers, chosen, teller(bars, line))
    return decide(current[0] if current else None, candidate, Limits(settings.false_reject_rate, force))


def _show(found: dict[str, Any]) -> None:
    now = "no version" if found["current"] is None else f"version {found['current']}"
    promoted = found["decision"] == "promote"
    says = f"is current now, in place of {now}" if promoted else f"is held; {now} stays current"
    OUT.print(f"{found['line']}: candidate {found['candidate']} {says}")
    for reason in filter(None, [*found["reasons"], found["caveat"]]):
        OUT.print(f"  {reason}", markup=False, highlight=False)
