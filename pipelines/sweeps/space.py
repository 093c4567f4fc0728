"""What a sweep tries of a method: the parameters that declare a search, less those that are fixed."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...methods.detector import Detector
from ...methods.errors import ConfigError
from ...methods.params import Param, parse, ranged, table
from ...methods.registry import method as registered

INT, FLOAT, CHOICE = "int", "float", "choice"


@dataclass(frozen=True)
class Dimension:
    """A parameter that is searched.

    kind: INT or FLOAT, anything from low to high, both included; CHOICE, one of `choices`. log: evenly over the
    logarithm. when: (parameter, values), searched only where that one is searched too and has one of these values.
    """

    name: str
    kind: str
    default: Any
    low: float = 0
    high: float = 0
    choices: tuple[Any, ...] = ()
    log: bool = False
    when: tuple[str, tuple[Any, ...]] | None = None


def space(method: str, fixed: Mapping[str, Any], only: Collection[str] = ()) -> list[Dimension]:
    """What is searched of a method where `fixed` is given; a condition stands before what depends on it.

    only: the names to search, plain or METHOD.NAME, those of other methods among them; empty: all that declare a
    search. What is neither fixed nor searched has its default, so a condition on it holds or not once and for all:
    where not, what depends on it is left out. Raises UnknownName and ConfigError for a parameter in `fixed` that is
    unknown or out of range, ConfigError for one of this method in `only` that declares no search.
    """
    cls = registered(method)
    rows = {name: spec for name, _, _, spec in table(cls)}
    wanted = _wanted(method, rows, only)
    settled = {name: default for name, _, default, _ in table(cls)} | parse(cls, fixed, method)
    free = {name for name in wanted if name not in fixed}
    found: dict[str, Dimension] = {}
    for dimension in _ordered(_declared(cls, free)):
        if dimension.when is None or dimension.when[0] in found:
            found[dimension.name] = dimension
        elif dimension.when[0] not in free and settled[dimension.when[0]] in dimension.when[1]:
            found[dimension.name] = replace(dimension, when=None)
    return list(found.values())


def _wanted(method: str, rows: Mapping[str, Param], only: Collection[str]) -> set[str]:
    """The parameters of a method that are to be searched. Raises ConfigError."""
    searchable = {name for name, spec in rows.items() if spec.search}
    if not only:
        return searchable
    plain = {name if "." not in name else name.removeprefix(f"{method}.") for name in only} & rows.keys()
    strange = sorted(plain - searchable)
    if strange:
        raise ConfigError(
            f"{method}: {', '.join(strange)} declares no search; those that do: {', '.join(sorted(searchable))}. "
            f"Give a value instead."
        )
    return plain


def _declared(cls: type[Detector], names: Collection[str]) -> list[Dimension]:
    """As the method declares them, in the order of its fields."""
    found = []
    for name, kind, default, spec in table(cls):
        if name not in names:
            continue
        if ranged(kind, spec):
            low, high = spec.search
            scale = INT if kind is int else FLOAT
            found.append(Dimension(name, scale, default, kind(low), kind(high), log=spec.log, when=spec.when))
        else:
            found.append(Dimension(name, CHOICE, default, choices=spec.search, when=spec.when))
    return found


def _ordered(dimensions: list[Dimension]) -> list[Dimension]:
    """By how many conditions stand before each; otherwise in the order they had."""
    named = {one.name: one for one in dimensions}

    def depth(one: Dimension) -> int:
        return 0 if one.when is None or one.when[0] not in named else 1 + depth(named[one.when[0]])

    return sorted(dimensions, key=depth)
