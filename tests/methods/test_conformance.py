"""Runs every check of the conformance suite on every registered method and on some variants."""

from collections.abc import Callable

import pytest
from everline.methods import conformance
from everline.methods.detector import Detector
from everline.methods.registry import METHODS, build

# (method or variant, check): why it is known to fail. Strict: one that passes again breaks the build.
KNOWN: dict[tuple[str, str], str] = {
    (
        "draem",
        "finds_an_obvious_defect",
    ): "eighty steps are too few, and batch norm's statistics lag behind; hundreds do (its own slow test)",
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


def maker(name: str, seed: int = 0) -> Callable[[], Detector]:
    method, given = VARIANTS.get(name, (name, {}))
    return lambda: build(method, size=conformance.SIZE, seed=seed, **SMALL.get(method, {}), **given)


def cases() -> list[object]:
    out = []
    for method in (*METHODS, *VARIANTS):
        for check in conformance.CHECKS:
            reason = KNOWN.get((method, check))
            marks = [pytest.mark.xfail(reason=reason)] if reason else []
            out.append(pytest.param(method, check, id=f"{method}-{check}", marks=marks))
    return out


@pytest.mark.parametrize(("method", "check"), cases())
def test_conforms(method: str, check: str) -> None:
    conformance.CHECKS[check](maker(method))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_a_student_finds_the_defect_whatever_its_seed(seed: int) -> None:
    conformance.check_finds_an_obvious_defect(maker("efficientad", seed))


def test_suite_is_not_empty() -> None:
    assert len(conformance.CHECKS) >= 15
    assert METHODS


def test_known_failures_name_real_checks() -> None:
    assert all(m in (*METHODS, *VARIANTS) and c in conformance.CHECKS for m, c in KNOWN)
