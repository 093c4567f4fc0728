"""The search of a sweep: Optuna's TPE, asked for whole generations, so that timing decides nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState

from ...methods.errors import ConfigError
from .record import COMPLETE, FAILED, STOPPED
from .space import FLOAT, INT, Dimension

DIGITS = 4  # of a number that is asked, so that a person can read it and type it again
STARTUP = 8  # configurations that are told of before TPE takes over from chance
TRIES, DRAWS = 20, 200  # for a configuration that is new: by TPE, then by chance


@dataclass(frozen=True)
class Told:
    """What came of a configuration. value: the objective; of STOPPED the curve's last figure, after `at` images."""

    status: str
    value: float = math.nan
    at: int = 0


class Study:
    """Asks for configurations of one method. The same seed and answers give the same questions, in any process.

    A generation is asked knowing what all before it were told, and nothing of each other but where they are: TPE
    counts what is still open as bad, so that it looks elsewhere (`constant_liar`). Parameters that are always there
    are modelled together, those that hang on a condition each by itself, over the configurations that had them.
    What failed counts as worse than all that was stopped, and that as worse than all that went to the end: a part of
    the space that cannot be run is left alone.
    """

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        fixed: Mapping[str, Any],
        samples: int,
        seed: int,
        generation: int,
        higher: bool = True,
    ) -> None:
        """dimensions: see `space`. fixed: what every configuration has besides; conditions may be on these too.

        samples: configurations in all, fewer where the space has no more. higher: whether more of a value is better.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, constant_liar=True)
        self._study = optuna.create_study(sampler=sampler, direction="maximize" if higher else "minimize")
        self._samplers = ((sampler, TRIES), (RandomSampler(seed=seed + 1), DRAWS))
        self._dimensions, self._fixed = list(dimensions), dict(fixed)
        self._left = samples if dimensions else min(samples, 1)
        self._generation = generation
        self._asked: set[tuple[tuple[str, Any], ...]] = set()
        self._open: list[Trial] = []

    def ask(self) -> list[dict[str, Any]]:
        """The parameters of each configuration of the next generation; none when there are no more to ask for.

        The first of a study is {}, the method's defaults; every other one names all that is searched under its
        conditions. Numbers have four significant digits. Raises ConfigError before the last ones are told.
        """
        if self._open:
            raise ConfigError(f"study: {len(self._open)} configurations are not told yet; tell what came of them.")
        found: list[dict[str, Any]] = []
        while self._left and len(found) < self._generation:
            params = self._new() if self._asked else self._defaults()
            if params is None:
                self._left = 0
                break
            self._left -= 1
            found.append(params)
        return found

    def tell(self, values: Sequence[Told]) -> None:
        """What came of each configuration of the last generation, in the order asked. Raises ConfigError."""
        if len(values) != len(self._open):
            raise ConfigError(f"study: {len(self._open)} configurations were asked for, {len(values)} told.")
        for told in values:
            if told.status not in (COMPLETE, STOPPED, FAILED):
                raise ConfigError(f"study: status {told.status!r}; valid: {COMPLETE}, {STOPPED}, {FAILED}.")
        for trial, told in zip(self._open, values, strict=True):
            known = math.isfinite(told.value)
            if told.status == COMPLETE and known:
                self._study.tell(trial, told.value)
                continue
            if told.status == STOPPED and known:
                trial.report(told.value, told.at)
            self._study.tell(trial, state=TrialState.PRUNED)
        self._open = []

    def _defaults(self) -> dict[str, Any]:
        """Asks for the defaults, of which TPE is to know where they are."""
        self._study.enqueue_trial({one.name: one.default for one in self._dimensions})
        trial = self._study.ask()
        self._asked.add(_key(self._suggest(trial)))
        self._open.append(trial)
        return {}

    def _new(self) -> dict[str, Any] | None:
        """A configuration that was not asked before; None where none was found."""
        for sampler, tries in self._samplers:
            for _ in range(tries):
                trial, params = self._draw(sampler)
                if _key(params) not in self._asked:
                    self._asked.add(_key(params))
                    self._open.append(trial)
                    return params
                self._study.tell(trial, state=TrialState.FAIL)  # TPE does not look at these
        return None

    def _draw(self, sampler: BaseSampler) -> tuple[Trial, dict[str, Any]]:
        self._study.sampler = sampler
        trial = self._study.ask()
        return trial, self._suggest(trial)

    def _suggest(self, trial: Trial) -> dict[str, Any]:
        """Values for all dimensions whose conditions hold, in order."""
        found: dict[str, Any] = {}
        for one in self._dimensions:
            if one.when is None or {**self._fixed, **found}.get(one.when[0]) in one.when[1]:
                found[one.name] = _drawn(trial, one)
        return found


def _drawn(trial: Trial, dimension: Dimension) -> Any:
    """A plain value; a float to DIGITS significant digits, within its range."""
    name, low, high, log = dimension.name, dimension.low, dimension.high, dimension.log
    if dimension.kind == INT:
        return int(trial.suggest_int(name, int(low), int(high), log=log))
    if dimension.kind == FLOAT:
        return min(max(float(f"{trial.suggest_float(name, low, high, log=log):.{DIGITS}g}"), low), high)
    return trial.suggest_categorical(name, dimension.choices)


def _key(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(params.items())
