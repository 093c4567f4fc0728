"""What records are called beside each other: the method, and exactly what tells its records apart."""

from collections.abc import Sequence
from typing import Any

from ...methods.params import table
from ...methods.registry import METHODS
from ..records.results import Result
from .sources import Source

Words = dict[str, str]  # name: value, as they would be typed


def labels(results: Sequence[Result], sources: Sequence[Source]) -> list[str]:
    """METHOD NAME=VALUE...: the parameters and seeds in which the records of one method differ, and the options.

    An option is named where any two records differ in it, of whatever method: it makes another experiment. A
    parameter that has the method's default value goes unnamed. What is alike even so has its file's name behind it,
    and what was read from MLflow its run's id in any case.
    """
    made = []
    for result in results:
        same = [one for one in results if one.method == result.method]
        words = [
            *_differing(changed(result), [changed(one) for one in same]),
            *_differing(telling(result), [telling(one) for one in results]),
            *_differing(seeds(result), [seeds(one) for one in same]),
        ]
        made.append(" ".join([result.method, *words]))
    stems = [source.stem for source in sources]
    names = stems if len(set(stems)) == len(stems) else [str(source) for source in sources]
    told = [bool(source.run_id) or made.count(label) > 1 for label, source in zip(made, sources, strict=True)]
    return [f"{label} ({name})" if tell else label for label, name, tell in zip(made, names, told, strict=True)]


def changed(result: Result) -> Words:
    """The parameters that are not the method's defaults; all, for a method that is not registered.

    Without size and seed: the first is the same for all that compare, the second is in `seeds`.
    """
    cls = METHODS.get(result.method)
    usual = {name: typed(default) for name, _, default, _ in table(cls)} if cls else {}
    given = {name: typed(value) for name, value in sorted(result.params.items()) if name not in ("size", "seed")}
    return {name: value for name, value in given.items() if usual.get(name) != value}


def options(result: Result) -> Words:
    """The protocol's options; each drift is one of its own."""
    found: dict[str, Any] = {}
    for name, value in result.options.items():
        found |= value if isinstance(value, dict) else {name: value}
    return {name: typed(value) for name, value in found.items()}


def telling(result: Result) -> Words:
    """The options that name a record: of a sequence, not those that are as its strategy has them unless told."""
    found = options(result)
    if "strategy" not in found:
        return found
    usual = {"scenario": "task" if found["strategy"] == "single" else "domain", "policy": "reservoir", "joint": "each"}
    return {name: value for name, value in found.items() if usual.get(name) != value}


def seeds(result: Result) -> Words:
    """The seed, or the first and the last of several."""
    return {"seeds": f"{result.seeds[0]}..{result.seeds[-1]}"} if result.seeds else {"seed": str(result.seed)}


def typed(value: Any) -> str:
    """A value as it would be typed behind --set NAME=."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return ",".join(map(typed, value)) if isinstance(value, list | tuple) else str(value)


def _differing(mine: Words, every: Sequence[Words]) -> list[str]:
    return [f"{name}={value}" for name, value in mine.items() if any(one.get(name) != value for one in every)]
