"""Runs every check of the conformance suite on every registered method and on some variants."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from everline.methods import conformance
from everline.methods.detector import Detector
from everline.methods.errors import ConfigError
from everline.methods.params import param
from everline.methods.registry import METHODS, build
from everline.methods.subspace import Subspace

# (method or variant, check): the limit of the method, as its docstring states it, and the test of what holds instead.
LIMITS: dict[tuple[str, str], tuple[str, str]] = {
    ("draem", "finds_an_obvious_defect"): (
        "needs some 150 batches",
        "test_draem.py::test_it_finds_a_defect_that_it_never_saw_after_hundreds_of_batches",
    ),
}
# parameters that make a method small enough for 64-pixel images
SMALL: dict[str, dict[str, object]] = {
    "draem": {"width": 0.03},
    "efficientad": {"teacher": "none", "width": 0.12, "lr": 1e-3, "fresh": 8},
    "patchcore": {"pool": 1000},
}
# methods with parameters under which they keep another state
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "padim-latest": ("padim", {"form": "latest"}),
    "padim-per-task": ("padim", {"form": "per-task"}),
    "padim-averaged": ("padim", {"form": "averaged"}),
    "coreset-routed": ("coreset", {"form": "routed"}),
}


def maker(name: str, seed: int = 0, device: str = "cpu") -> Callable[[], Detector]:
    method, given = VARIANTS.get(name, (name, {}))
    return lambda: build(method, size=conformance.SIZE, seed=seed, device=device, **SMALL.get(method, {}), **given)


def cases() -> list[object]:
    pairs = [(method, check) for method in (*METHODS, *VARIANTS) for check in conformance.CHECKS]
    return [pytest.param(*pair, id="-".join(pair)) for pair in pairs if pair not in LIMITS]


@pytest.mark.parametrize(("method", "check"), cases())
def test_conforms(method: str, check: str, request: pytest.FixtureRequest) -> None:
    conformance.CHECKS[check](maker(method, device=request.config.getoption("--device")))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_a_student_finds_the_defect_whatever_its_seed(seed: int) -> None:
    conformance.check_finds_an_obvious_defect(maker("efficientad", seed))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"search": (0.1, 0.9)}, "0.99 is not in"),
        ({"search": (0.0, 0.995), "log": True}, "logarithmic"),
        ({"search": (0.9, 0.995), "when": ("explained", (0.99,))}, "hangs on"),
        ({"search": (0.9, 0.995), "when": ("shrinkage", (7.0,))}, "shrinkage must be in"),
        ({"when": ("score_rule", ("residual",))}, "never searched"),
        ({"search": (0.5, 1.5)}, "explained must be in"),
        ({"search": (0.9, 0.95, 0.999)}, "not among"),
    ],
)
def test_a_search_space_that_makes_no_sense_is_found(spec: dict[str, Any], said: str) -> None:
    @dataclass(kw_only=True, eq=False)
    class Wrong(Subspace):
        explained: float = param(0.99, "share", low=0, high=0.99999, **spec)

    with pytest.raises((AssertionError, ConfigError), match=said):
        conformance.check_search_space(lambda: Wrong(size=conformance.SIZE))


def test_suite_is_not_empty() -> None:
    assert len(conformance.CHECKS) >= 15
    assert METHODS


def test_a_limit_is_documented_and_what_holds_instead_is_tested() -> None:
    for (method, check), (limit, instead) in LIMITS.items():
        assert method in METHODS and check in conformance.CHECKS
        assert limit in " ".join((METHODS[method].__doc__ or "").split())
        file, name = instead.split("::")
        assert f"def {name}(" in (Path(__file__).parent / file).read_text("utf-8")
