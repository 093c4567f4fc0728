"""What a sweep is asked for, as plain values: the options of `everline sweep`, and sweep.json in its folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ... import __version__
from ...methods.errors import ConfigError, DataError, UnknownName
from ...methods.registry import METHODS, method
from ..protocols.continual import Continual
from ..protocols.protocols import PROTOCOLS
from ..protocols.trial import Trial
from ..records.rows import Row
from .objectives import OBJECTIVES

FORMAT = 1
BESIDE = ("methods", "memory", "samples", "search", "reduction", "generation", "data")  # decide which trials there are


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Raises ConfigError, UnknownName for what methods or protocol do not know.

    memory: sizes to try, empty for each method's own. samples: configurations of each method and memory size, the
    first being its defaults. given: parameters that are not searched, NAME or METHOD.NAME. search: the only ones that
    are; empty for all that the methods declare. holdout: share of each task's images to judge that the search never
    sees. reduction: of those who reach a rung of the curve, one in so many goes on; 1: all do. generation:
    configurations that are asked for together, knowing all that went before and nothing of each other.
    data: {"folders", "dataset", "root"}, absolute. images: a checksum for each task. files: one for each file that a
    parameter names, such as weights.
    """

    methods: tuple[str, ...]
    protocol: str = "online"
    options: Mapping[str, Any] = field(default_factory=dict)
    memory: tuple[int, ...] = ()
    samples: int = 1
    seeds: int = 1
    objective: str = "auroc"
    given: Mapping[str, Any] = field(default_factory=dict)
    search: tuple[str, ...] = ()
    holdout: float = 0.5
    reduction: int = 3
    generation: int = 8
    seed: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UnknownName.among("everline sweep", "objective", self.objective, OBJECTIVES)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ConfigError("--method takes different methods with commas between, at least one.")
        for name, least in (("samples", 1), ("seeds", 1), ("reduction", 1), ("generation", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} must be at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"--holdout must be in [0, 1), got {self.holdout}.")
        if len(set(self.memory)) < len(self.memory):
            raise ConfigError(f"--memory names a size twice: {', '.join(map(str, self.memory))}.")
        if self.search and self.samples == 1:
            raise ConfigError("--search names what is searched: give --samples N with it, for N configurations.")
        self._check_given()
        for name in self.methods:
            for size in self.sizes(name):
                self.trial(name, size, {})

    @property
    def together(self) -> bool:
        """Whether a trial runs on all tasks in sequence, not on one."""
        return PROTOCOLS[self.protocol] is Continual

    @property
    def replays(self) -> bool:
        """Whether --memory counts the images of a replay memory, which the protocol owns."""
        return self.together and self.options.get("strategy") == "replay"

    def sizes(self, name: str) -> tuple[int | None, ...]:
        """The memory sizes that a method is tried with; None: as it is, or it has none that can be set."""
        return self.memory if self.memory and (self.replays or method(name).traits.memory) else (None,)

    def fixed(self, name: str, memory: int | None) -> dict[str, Any]:
        """A method's parameters that are not searched."""
        found = {one: value for one, value in self.given.items() if "." not in one and _has(name, one)}
        found |= {one.partition(".")[2]: v for one, v in self.given.items() if one.partition(".")[0] == name}
        if memory is not None and not self.replays:
            found[method(name).traits.memory] = memory
        return found

    @property
    def decides(self) -> str:
        """What decides what comes of a trial, beside the trial itself, as text: not how many others are run."""
        own = {name: value for name, value in self.to_json().items() if name not in BESIDE}
        return json.dumps({**own, "everline": __version__}, sort_keys=True)

    @property
    def some_trial(self) -> Trial:
        """Any of them: all have one protocol."""
        return self.trial(self.methods[0], self.sizes(self.methods[0])[0], {})

    def trial(self, name: str, memory: int | None, params: Mapping[str, Any]) -> Trial:
        """A method with these parameters beside the fixed ones; it can be asked, and `placed` where it is to run.

        Raises ConfigError.
        """
        options = {**self.options, **({"memory": memory} if memory is not None and self.replays else {})}
        given = {"seed": self.seed, **self.fixed(name, memory), **params}
        if str(given.get("device", "")).startswith("cuda"):
            given["device"] = "cpu"  # the machine that asks, a cluster's head, may have no GPU
        return Trial(self.protocol, name, given, options, self.seeds)

    def placed(self, trial: Trial) -> Trial:
        """The trial with its own device, for the machine that runs it. Raises ConfigError where that lacks it."""
        own = {name: value for name, value in self.fixed(trial.method, None).items() if name == "device"}
        return replace(trial, given={**trial.given, **own})

    def _check_given(self) -> None:
        """Every name is a parameter of some method of the sweep, and none is set twice."""
        kept = {name: method(name).traits.memory for name in self.methods if self.memory and not self.replays}
        for name, own in kept.items():
            if own and own in self.fixed(name, None):
                raise ConfigError(f"--memory sets {own} of {name}, and so does --set; give one of them.")
        for name in (*self.given, *self.search):
            owner, dot, own = name.partition(".")
            if dot and owner not in self.methods:
                raise UnknownName.among("everline sweep", "method", owner, self.methods)
            known = {n for one in ([owner] if dot else self.methods) for n in method(one).__dataclass_fields__}
            if (own if dot else name) not in known:
                raise UnknownName.among("everline sweep", "parameter", own if dot else name, known)

    def to_json(self) -> dict[str, Any]:
        """Plain values for sweep.json."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, plain: Any, who: str = "sweep") -> "SweepSettings":
        """The reverse. Raises DataError for anything else, ConfigError for values out of range."""
        row = Row(plain, who)
        if row.get("format", int) != FORMAT:
            raise DataError(f"{who}: format {plain['format']!r}, expected {FORMAT}.")
        found: dict[str, Any] = {name: tuple(row.words(name)) for name in ("methods", "search")}
        found |= {name: row.get(name, dict) for name in ("options", "given", "data", "images", "files")}
        found |= {name: row.get(name, int) for name in ("samples", "seeds", "reduction", "generation", "seed")}
        found |= {name: row.get(name, str) for name in ("protocol", "objective")}
        if found["protocol"] not in PROTOCOLS:
            raise UnknownName.among(who, "protocol", found["protocol"], PROTOCOLS)
        data = Row(found["data"], f"{who}: data")
        data.words("folders")
        for name in ("dataset", "root"):
            data.get(name, (str, type(None)))
        holdout = float(row.get("holdout", (int, float)))
        return cls(**found, memory=tuple(row.whole_numbers("memory")), holdout=holdout)


def _has(name: str, param: str) -> bool:
    return param in METHODS[name].__dataclass_fields__ if name in METHODS else False
