"""One protocol with one method and its parameters: what `everline evaluate` runs, and `everline bench` many of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ... import __version__
from ...methods.detector import Detector
from ...methods.errors import ConfigError, UnknownName
from ...methods.params import parse, table
from ...methods.registry import build
from ..data.datasets import Task
from ..data.drift import Drift
from ..data.fingerprint import digest, fingerprint
from ..records.continued import Continued
from ..records.results import Result, TaskResult
from .continual import Continual
from .course import PerTask, Protocol, Sink, nowhere
from .journal import Journal
from .judging import Features, Make, Reached, Told, onward
from .protocols import PROTOCOLS
from .seeds import over_seeds, sequence_over_seeds


@dataclass(frozen=True)
class Trial:
    """given: the method's parameters that were named. options: the protocol's. seeds: how many, from `seed` on.

    Raises ConfigError and UnknownName for what method or protocol do not know, before anything is read.
    """

    protocol: str
    method: str
    given: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"seeds must be at least 1, got {self.seeds!r}.")
        self.runs[0].check(self.detector)

    @cached_property
    def detector(self) -> Detector:
        """One that never learns: it tells of parameters and size."""
        return build(self.method, **self.given)

    @cached_property
    def runs(self) -> list[Protocol]:
        """The protocol once for each seed."""
        options = own_options(self.protocol, self.options)
        return [PROTOCOLS[self.protocol](seed=self.detector.seed + n, **options) for n in range(self.seeds)]

    def make(self, seed: int) -> Make:
        """Builds fresh detectors of one seed."""
        return partial(build, self.method, **{**self.given, "seed": seed})

    def on(
        self,
        task: Task,
        told: Callable[[int], Told],
        sink: Sink = nowhere,
        features: Features | None = None,
        reached: Callable[[int], Reached] = lambda seed: onward,
    ) -> TaskResult:
        """Runs it on one task; see `over_seeds`."""
        runs = [one for one in self.runs if isinstance(one, PerTask)]
        return over_seeds(runs, self.make, task, told, sink, features, reached)

    @property
    def together(self) -> bool:
        """Whether all tasks are run as one sequence."""
        return isinstance(self.runs[0], Continual)

    def on_all(
        self,
        tasks: Sequence[Task],
        told: Callable[[int], Told],
        sink: Sink = nowhere,
        features: Features | None = None,
        work: Path | None = None,
        reached: Callable[[int], Reached] = lambda seed: onward,
    ) -> tuple[list[TaskResult], Continued]:
        """Runs it on a sequence; see `sequence_over_seeds`. work: folder in which it goes on where it was stopped."""
        runs = [one for one in self.runs if isinstance(one, Continual)]
        asked = {"protocol": self.protocol, "params": self.detector.params, "options": self.runs[0].options}
        if work is not None:
            files = {name: digest(Path(value)) for name, value in self.detector.params.items() if is_file(value)}
            asked |= {"images": [fingerprint(task) for task in tasks], "files": files, "everline": __version__}

        def journal(seed: int) -> Journal | None:
            name = f"{runs[0].strategy}-seed{seed}"
            return None if work is None else Journal(work / name, {**asked, "seed": seed, "method": self.method})

        return sequence_over_seeds(runs, self.make, tasks, told, sink, features, journal, reached)

    def instead(self, strategy: str) -> "Trial":
        """The same sequence under the strategy single or multitask, which it is measured against."""
        run = self.runs[0]
        assert isinstance(run, Continual)
        return Trial(self.protocol, self.method, self.given, run.reference(strategy), self.seeds)

    def result(
        self, tasks: Sequence[TaskResult], dataset: str | None = None, continued: Continued | None = None
    ) -> Result:
        """The record of what was run; `dataset`: the name of the data set that the tasks are of, if it has one."""
        params, seeds = self.detector.params, [one.seed for one in self.runs]
        return Result(
            protocol=self.protocol,
            method=self.method,
            params=params,
            backbone=params.get("backbone"),
            size=self.detector.size,
            seed=self.detector.seed,
            tasks=tasks,
            options=self.runs[0].options,
            seeds=seeds if len(seeds) > 1 else [],
            dataset=dataset,
            continued=continued,
        )


def is_file(value: Any) -> bool:
    """Whether a parameter names a file, such as weights: what is in it decides the figures too."""
    return isinstance(value, str) and len(value) < 4096 and Path(value).is_file()


def own_options(protocol: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as the protocol takes them.

    Raises UnknownName for the protocol, ConfigError for an option that it does not have, or of another type.
    """
    if protocol not in PROTOCOLS:
        raise UnknownName.among("everline", "protocol", protocol, PROTOCOLS)
    given = {name: value for name, value in options.items() if value not in (None, ())}
    own, kinds = PROTOCOLS[protocol].option_names(), get_type_hints(PROTOCOLS[protocol])
    described = {name for name, *_ in table(PROTOCOLS[protocol])}  # checked by what is said of them there
    for name in given:
        if name not in own:
            has = f"its options are {', '.join(f'--{one}' for one in own)}"
            raise ConfigError(f"--{name} is no option of the protocol {protocol}; {has}.")
    rest = {name: value for name, value in given.items() if name not in described}
    checked = parse(PROTOCOLS[protocol], {name: given[name] for name in given if name in described}, protocol)
    return checked | {
        name: _drifts(value) if name == "drift" else _number(name, value, kinds[name]) for name, value in rest.items()
    }


def _number(name: str, value: Any, kind: Any) -> Any:
    """`value` if it is of an option's type, a whole number or any number."""
    whole = float not in (kind, *get_args(kind))
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ConfigError(f"--{name} must be {'a whole number' if whole else 'a number'}, got {value!r}.")
    return value


def _drifts(given: Any) -> tuple[Drift, ...]:
    """From KIND and KIND=LEVEL words, or from levels by kind, as a record has them."""
    if isinstance(given, Mapping):
        return tuple(Drift(kind, _number("drift", level, float)) for kind, level in given.items())
    if not isinstance(given, list | tuple) or not all(isinstance(word, str) for word in given):
        raise ConfigError(f"--drift must be a list of KIND or KIND=LEVEL, or levels by kind, got {given!r}.")
    return tuple(Drift.parse(word) for word in given)
