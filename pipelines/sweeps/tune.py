"""`everline tune LINE`: a sweep on the line's own log, and the fleet entry that it recommends."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ...methods.errors import ConfigError, StoreError
from ...methods.registry import build, method
from ...platform.log import LogReader, has_log, line_folder
from ...platform.settings import LineSettings, read_fleet
from ..console import ERR, OUT, fleet_option, json_option, write_json
from ..files import FilePath
from ..runs.tracked import tracking_option
from .command import FOLDER, conduct, data_at, sizes_of, words_of
from .objectives import OBJECTIVES
from .outcome import Outcome
from .outcome_rows import plain
from .own_log import LogTask, export, reopen
from .place import Place, place_options
from .recommend import fleet_entry
from .settings import SweepSettings
from .sweep import begin, check_images, read_settings
from .winner import propose_winner, winner_of

METHODS = ("coreset", "padim", "subspace", "lemo")


@click.command()
@click.argument("line")
@fleet_option
@click.option(
    "--method", "methods", metavar="NAME,...",
    help=f"Methods to try beside the line's own.  [default: {','.join(METHODS)}]",
)  # fmt: skip
@click.option("--memory", metavar="N,...", help="Memory sizes to try.")
@click.option(
    "--samples", type=int, default=4, show_default=True, help="Configurations of each method and memory size."
)
@click.option(
    "--objective", type=click.Choice(list(OBJECTIVES)), default="auroc", show_default=True, help="What is best."
)
@click.option(
    "--holdout",
    type=float,
    default=0.5,
    show_default=True,
    help="Share of the images to judge that the search never sees.",
)
@click.option("--since", type=int, metavar="RECORD", help="Take the log from this record on.")
@click.option("--most", type=int, metavar="N", help="Take the newest N labelled images only.")
@click.option("--synthetic/--no-synthetic", default=True, help="Whether to make defects up where there are too few.")
@click.option(
    "--out",
    type=FilePath(file_okay=False),
    help=f"Folder of the sweep.  [default: {FOLDER}/LINE-TIME]",
)
@click.option("--resume", is_flag=True, help="Go on in --out, on the images that were taken from the log then.")
@click.option("--publish", is_flag=True, help="Register the recommended configuration as the line's candidate.")
@place_options
@json_option
@tracking_option
def tune(
    line: str,
    fleet_file: Path,
    methods: str | None,
    memory: str | None,
    samples: int,
    objective: str,
    holdout: float,
    since: int | None,
    most: int | None,
    synthetic: bool,
    out: Path | None,
    resume: bool,
    publish: bool,
    place: Place,
    json_file: Path | None,
    tracking: str | None,
) -> None:
    """Try methods and parameters on LINE's own log; recommend an entry for the fleet file, with the evidence.

    Earlier records are learned, later ones judged. What an operator said of an image counts before the guard's
    opinion; where there are too few defects some are made up. What the fleet file sets of the line's method stays as
    it is.
    """
    fleet = read_fleet(fleet_file)
    own = fleet.line(line)
    folder = line_folder(fleet.store, line)
    if not has_log(folder):
        raise StoreError(f"line {line} has no log in {fleet.store} yet: nothing was ever sent to it.")
    if resume:
        _check_resumed(out)
    out = (out or Path(FOLDER, f"{line}-{time.strftime('%Y%m%d-%H%M%S')}")).absolute()
    images = out / "data" / line
    if resume:
        settings, data = read_settings(out), reopen(images)
        check_images(settings, [data.task], out)
    else:
        settings = _settings(
            own,
            methods,
            memory,
            "cuda" if place.gpus else None,
            samples=samples,
            objective=objective,
            holdout=holdout,
            data=data_at([images]),
        )
        data = export(LogReader(folder), images, since=since, most=most, synthetic=synthetic, bits=own.bits)
        settings = begin(settings, out, [data.task])
    for text in filter(None, (_counted(data), data.caveat)):
        ERR.print(text, markup=False, highlight=False)
    quiet, again = json_file is not None, f"tune {line}"
    found = conduct(place.job(settings, out), [data.task], place, tracking, quiet, resume, again)
    advice = recommended(line, own, found, data)
    if publish:
        advice["published"] = propose_winner(found, data.task, line, fleet, out, watermark=data.watermark, quiet=quiet)
    write_json({**plain(advice), "sweep": found.to_json()}, json_file)
    if str(json_file) != "-":
        _show(advice)


def recommended(line: str, own: LineSettings, found: Outcome, data: LogTask) -> dict[str, Any]:
    """The entry for the fleet file, and what speaks for it: the best trial beside the line as it is."""
    best = winner_of(found, data.task)
    size = own_size(own)
    mine = (row for row in found.trials if row["method"] == own.method and not row["searched"])
    now = next((row for row in mine if row["memory"] in (None, size)), None)
    params = {**found.settings.fixed(best["method"], best["memory"]), **best["searched"]}
    change = now is None or best["number"] != now["number"]
    return {
        "line": line,
        "change": change,
        "entry": fleet_entry(line, own, best["method"], params) if change else None,
        "objective": found.settings.objective,
        "recommended": best,
        "current": now,
        "data": data.counts,
        "caveat": data.caveat,
    }


SETTLED = ("methods", "memory", "samples", "objective", "holdout", "since", "most", "synthetic")


def _check_resumed(out: Path | None) -> None:
    """Raises ConfigError for what a sweep that goes on cannot be asked for."""
    if out is None:
        raise ConfigError("--resume needs --out DIR: the folder of the sweep to go on with.")
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    options = {param.name: param.opts[0] for param in context.command.params}
    given = [options[name] for name in SETTLED if context.get_parameter_source(name) != default]
    if given:
        raise ConfigError(f"--resume goes on with what was asked for; leave out {', '.join(given)}.")


def _settings(
    own: LineSettings, methods: str | None, memory: str | None, device: str | None, **more: Any
) -> SweepSettings:
    """The line's method with what its entry sets, and others on images of the same size and bits."""
    sizes, kept = sizes_of(memory), method(own.method).traits.memory
    if sizes and kept:  # the line's own size is tried too, beside those that were named
        sizes = sorted({*sizes, own_size(own)})
    params = {name: value for name, value in own.params.items() if not (sizes and name == kept)}
    given = {f"{own.method}.{name}": value for name, value in params.items()}
    given |= {name: own.params[name] for name in ("size", "bits") if name in own.params}
    given |= {"device": device} if device else {}
    names = dict.fromkeys([own.method, *(METHODS if methods is None else words_of(methods))])
    return SweepSettings(methods=tuple(names), memory=tuple(sizes), given=given, **more)


def own_size(own: LineSettings) -> Any:
    """How much the line's method keeps; None where that cannot be said."""
    kept = method(own.method).traits.memory
    return getattr(build(own.method, **own.params), kept) if kept else None


def _counted(data: LogTask) -> str:
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in data.counts.items() if count)
    return f"{len(data.task.train)} images to learn, {len(data.task.test)} to judge; labels: {counts}"


def _show(advice: Mapping[str, Any]) -> None:
    title = OBJECTIVES[advice["objective"]].title
    for name in ("current", "recommended"):
        row = advice[name]
        if row is not None and row["objective"] is not None:
            held = row["held_out"]
            unseen = f", {held['objective']:.4g} on images that the search never saw" if held else ""
            OUT.print(
                f"{name}: {row['method']}, {title} {row['objective']:.4g}{unseen}", markup=False, highlight=False
            )
    if advice["caveat"]:
        OUT.print(f"({advice['caveat']}.)", markup=False, highlight=False)
    said = "for the fleet file:\n" + advice["entry"] if advice["change"] else "the line is best as it is."
    OUT.print(said, markup=False, highlight=False)
