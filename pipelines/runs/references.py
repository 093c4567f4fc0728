"""Records of sequences beside each other: what single and joint models reached measures the others."""

from collections.abc import Sequence
from typing import Any

from ..records.results import Result
from .succession import REFERENCES, beside_others

APART = ("strategy", "memory", "policy", "scenario", "joint")  # options in which a reference may be another
OF_MANY = {
    "padim": ("form",),
    "coreset": ("form",),
}  # parameters that say nothing of who knows of one task, or of none, as single and joint models do


def with_references(results: Sequence[Result]) -> list[Result]:
    """The records, with what `single` and `multitask` among them say of those that were run without.

    One is another's reference if method, parameters, seeds, sequence and all options but APART are the same; of joint
    models only those that were made at each step.
    """
    return [_completed(result, results) for result in results]


def _completed(result: Result, results: Sequence[Result]) -> Result:
    own = result.continued
    if own is None:
        return result
    lacking = [name for name, there in zip(REFERENCES, (own.single, own.joint), strict=True) if there is None]
    found = {name: _reference(result, results, name) for name in lacking}
    return beside_others(result, {name: other for name, other in found.items() if other is not None})


def _reference(result: Result, results: Sequence[Result], strategy: str) -> Result | None:
    """The record of a strategy that belongs to a result; with the very same parameters, if there is such."""
    for names in ((), OF_MANY.get(result.method, ())):
        for other in results:
            wanted = other.options.get("strategy") == strategy and other.options.get("joint", "each") == "each"
            if wanted and _asked(other, names) == _asked(result, names):
                return other
    return None


def _asked(result: Result, apart: Sequence[str]) -> Any:
    """All that must be alike."""
    assert result.continued is not None
    runs = result.continued.runs or [result.continued]
    params = {name: value for name, value in result.params.items() if name not in apart}
    options = {name: value for name, value in result.options.items() if name not in APART}
    return result.method, params, options, result.seed, result.seeds, [(run.columns, run.steps) for run in runs]
