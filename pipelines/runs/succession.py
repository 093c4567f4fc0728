"""`everline evaluate continual`: its run beside those that it is measured against."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ...methods.errors import ConfigError
from ..console import progress, teller
from ..data.datasets import Task
from ..files import FilePath
from ..protocols.course import Sink, nowhere
from ..protocols.judging import Features, Told
from ..protocols.trial import Trial
from ..records.results import Result

REFERENCES = ("single", "multitask")
KEEP = 4 * 2**30  # bytes of features, shared by the run and its references


def beside_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --references and --work."""
    for option in (
        click.option(
            "--work", type=FilePath(file_okay=False),
            help="Of continual: folder for finished steps; stopped, the same command goes on behind the last one.",
        ),
        click.option(
            "--references", multiple=True, type=click.Choice([*REFERENCES, "none"]),
            metavar="[single|multitask|none]...",
            help="Of continual: what else is run, to measure against.  [default: single multitask; of a method that "
            "trains its own network: single]",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def check_together(trial: Trial, references: Sequence[str], work: Path | None) -> None:
    """Raises ConfigError for options that only a sequence has."""
    if not trial.together and (references or work):
        raise ConfigError(f"--{'references' if references else 'work'} is of the protocol continual.")
    if "none" in references and len(references) > 1:
        raise ConfigError("--references none stands alone.")


def run_together(
    trial: Trial,
    tasks: Sequence[Task],
    sink: Sink = nowhere,
    dataset: str | None = None,
    references: Sequence[str] = (),
    work: Path | None = None,
) -> Result:
    """Runs a sequence and its references on the same features; the record has what they say of it.

    references: of REFERENCES, or `none`; empty: the default. work: see `Trial.on_all`.
    """
    run = trial.runs[0]
    shared = Features(trial.make(trial.detector.seed), KEEP, again=True, crop=run.crop)
    own = getattr(run, "strategy", "")
    with progress() as bars:

        def result(one: Trial, name: str, sink: Sink) -> Result:
            bar = bars.add_task(name, total=None)

            def told(seed: int) -> Told:
                return teller(bars, name if one.seeds == 1 else f"{name} seed {seed}", bar)

            done, continued = one.on_all(tasks, told, sink, shared, work)
            return one.result(done, dataset, continued)

        beside = {
            name: result(trial.instead(name), name, nowhere)
            for name in _wanted(trial, references)
            if name != own  # the same options but for --joint: not worth a run of its own
        }
        found = result(trial, own, sink)
    return beside_others(found, {**beside, own: found})


def beside_others(result: Result, others: dict[str, Result]) -> Result:
    """The record with what `single` and `multitask` of the same sequence say of it."""
    if result.continued is None:
        return result
    single, joint = (others[name].continued if name in others else None for name in REFERENCES)
    return replace(result, continued=result.continued.beside(single, joint))


def _wanted(trial: Trial, references: Sequence[str]) -> Sequence[str]:
    if references:
        return [name for name in REFERENCES if name in references]
    return REFERENCES[:1] if trial.detector.traits.end_to_end else REFERENCES
