"""The search: defaults first, conditions kept, the same questions for the same answers, and better than chance."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from everline.methods.errors import ConfigError
from everline.methods.registry import build
from everline.pipelines.sweeps.record import COMPLETE, FAILED, STOPPED
from everline.pipelines.sweeps.space import CHOICE, FLOAT, INT, Dimension, space
from everline.pipelines.sweeps.study import Study, Told

Params = dict[str, Any]
SPACE = [
    Dimension("kind", CHOICE, "flat", choices=("flat", "steep")),
    Dimension("rate", FLOAT, 1e-4, 1e-6, 1e-1, log=True),
    Dimension("size", INT, 10, 1, 1000, log=True),
    Dimension("slope", FLOAT, 0.0, 0.0, 4.0, when=("kind", ("steep",))),
]
USUAL = {one.name: one.default for one in SPACE}


def height(params: Mapping[str, Any]) -> float:
    """Highest, 0, at a steep slope of 3 with rate 1e-2 and size 200."""
    p = {**USUAL, **params}
    off = (math.log10(p["rate"]) + 2) ** 2 + (math.log10(p["size"] / 200)) ** 2
    return -off - ((p["slope"] - 3) ** 2 / 4 if p["kind"] == "steep" else 2)


def run(study: Study, answer: Callable[[int, Params], Told]) -> list[Params]:
    """All that is asked, where the n-th configuration is answered so."""
    asked: list[Params] = []
    while generation := study.ask():
        study.tell([answer(len(asked) + n, params) for n, params in enumerate(generation)])
        asked += generation
    return asked


def honest(_: int, params: Params) -> Told:
    return Told(COMPLETE, height(params))


def mixed(number: int, params: Params) -> Told:
    """Every third is stopped, every seventh fails, some say NaN."""
    if number % 7 == 3:
        return Told(FAILED)
    if number % 7 == 5:
        return Told(COMPLETE, math.nan)
    return Told(STOPPED, height(params), 20 + number % 3) if number % 3 == 1 else honest(number, params)


def test_the_defaults_come_first_and_once() -> None:
    asked = run(Study(SPACE, {}, 30, 0, 8), honest)
    assert asked[0] == {} and {} not in asked[1:]
    assert len(asked) == 30


def test_generations_are_as_large_as_said_and_the_last_is_what_is_left() -> None:
    study, sizes = Study(SPACE, {}, 10, 0, 4), []
    while generation := study.ask():
        sizes.append(len(generation))
        study.tell([Told(COMPLETE, 0.5)] * len(generation))
    assert sizes == [4, 4, 2] and study.ask() == []


@pytest.mark.parametrize("answer", [honest, mixed])
def test_the_same_seed_and_answers_give_the_same_questions(answer: Callable[[int, Params], Told]) -> None:
    first, again = (run(Study(SPACE, {}, 24, 3, 6), answer) for _ in range(2))
    assert first == again
    assert first != run(Study(SPACE, {}, 24, 4, 6), answer)


def test_answers_matter() -> None:
    down = Study(SPACE, {}, 40, 3, 8, higher=False)
    assert run(down, honest)[:8] == run(Study(SPACE, {}, 8, 3, 8), honest)
    assert run(Study(SPACE, {}, 40, 3, 8), honest) != run(Study(SPACE, {}, 40, 3, 8, higher=False), honest)


PROGRAM = """
import json
from everline.pipelines.sweeps.record import COMPLETE
from everline.pipelines.sweeps.space import space
from everline.pipelines.sweeps.study import Study, Told
study, asked = Study(space("coreset", {}), {}, 20, 1, 5), []
while some := study.ask():
    asked += some
    study.tell([Told(COMPLETE, -abs(p.get("shrinkage", 0.01) - 0.1) - p.get("guard", 1)) for p in some])
print(json.dumps(asked))
"""


def in_another_process(hash_seed: str) -> Any:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.slow
def test_other_processes_ask_the_same_quietly() -> None:
    def answer(_: int, p: Params) -> Told:
        return Told(COMPLETE, -abs(p.get("shrinkage", 0.01) - 0.1) - p.get("guard", 1))

    here = run(Study(space("coreset", {}), {}, 20, 1, 5), answer)
    assert in_another_process("1") == here


@pytest.mark.parametrize("answer", [honest, mixed])
def test_a_dependent_is_asked_where_its_condition_holds_and_only_there(answer: Callable[[int, Params], Told]) -> None:
    asked = run(Study(SPACE, {}, 60, 1, 8), answer)[1:]
    assert {"flat", "steep"} == {params["kind"] for params in asked}
    assert all(("slope" in params) == (params["kind"] == "steep") for params in asked)
    assert all({"kind", "rate", "size"} <= params.keys() for params in asked)


def test_conditions_may_be_on_what_is_fixed() -> None:
    slope = [one for one in SPACE if one.name == "slope"]
    assert "slope" in run(Study(slope, {"kind": "steep"}, 3, 0, 3), honest)[1]
    assert run(Study(slope, {"kind": "flat"}, 3, 0, 3), honest) == [{}]


def test_values_are_plain_within_range_and_short() -> None:
    for params in run(Study(SPACE, {}, 40, 2, 8), honest)[1:]:
        assert [type(params[name]) for name in ("kind", "rate", "size")] == [str, float, int]
        assert 1e-6 <= params["rate"] <= 0.1 and 1 <= params["size"] <= 1000
        assert float(f"{params['rate']:.4g}") == params["rate"]
        assert json.loads(json.dumps(params)) == params


def test_rounding_stays_within_the_range() -> None:
    edge = [Dimension("x", FLOAT, 0.1233, 0.1233, 0.12346)]
    found = {params["x"] for params in run(Study(edge, {}, 5, 0, 2), honest)[1:]}
    assert found == {0.1234, 0.12346}


@pytest.mark.parametrize("generation", [1, 4, 50])
def test_a_small_space_is_asked_whole_and_nothing_twice(generation: int) -> None:
    small = [
        Dimension("a", CHOICE, 1, choices=(1, 2, 3)),
        Dimension("b", CHOICE, False, choices=(False, True)),
        Dimension("c", INT, 0, 0, 2, when=("b", (True,))),
    ]
    usual = {"a": 1, "b": False}
    asked = run(Study(small, {}, 100, 0, generation), lambda n, p: Told(COMPLETE, {**usual, **p}["a"]))
    found = [tuple(sorted((usual | params).items())) for params in asked]
    assert len(found) == len(set(found)) == 3 * (1 + 3)


def test_where_nothing_is_searched_there_is_one_configuration() -> None:
    study = Study([], {"lr": 0.1}, 20, 0, 8)
    assert study.ask() == [{}]
    study.tell([Told(COMPLETE, 0.5)])
    assert study.ask() == []


@pytest.mark.parametrize("status", [STOPPED, FAILED])
def test_a_study_of_which_nothing_ends_goes_on(status: str) -> None:
    assert len(run(Study(SPACE, {}, 40, 0, 8), lambda n, p: Told(status))) == 40


def test_what_fails_is_left_alone() -> None:
    def flat_fails(_: int, params: Params) -> Told:
        return Told(FAILED) if params.get("kind", "flat") == "flat" else Told(COMPLETE, height(params))

    late = run(Study(SPACE, {}, 60, 0, 4), flat_fails)[30:]
    assert sum(params["kind"] == "flat" for params in late) < 10


def test_what_is_stopped_with_a_low_figure_is_left_alone() -> None:
    def small_stops(_: int, params: Params) -> Told:
        size = {**USUAL, **params}["size"]
        return Told(STOPPED, size / 1000, 10) if size < 100 else Told(COMPLETE, height(params))

    late = run(Study(SPACE, {}, 60, 0, 4), small_stops)[30:]
    assert sum(params["size"] < 100 for params in late) < 10


def test_asking_again_needs_the_answers_and_all_of_them() -> None:
    study = Study(SPACE, {}, 10, 0, 3)
    study.ask()
    with pytest.raises(ConfigError, match="3 configurations are not told"):
        study.ask()
    with pytest.raises(ConfigError, match="3 configurations were asked for, 2 told"):
        study.tell([Told(FAILED)] * 2)
    with pytest.raises(ConfigError, match="'done'"):
        study.tell([Told("done", 0.5)] * 3)
    study.tell([Told(FAILED)] * 3)
    assert len(study.ask()) == 3


def by_chance(seed: int, samples: int) -> float:
    """The best of the defaults and as many draws, less one, of plain random search."""
    rng = np.random.default_rng(seed)
    found = [height({})]
    for _ in range(samples - 1):
        params = {"kind": rng.choice(["flat", "steep"]), "rate": 10 ** rng.uniform(-6, -1)}
        found.append(height({**params, "size": 10 ** rng.uniform(0, 3), "slope": rng.uniform(0, 4)}))
    return max(found)


def test_it_beats_random_search_of_the_same_size() -> None:
    seeds, samples = range(5), 40
    ours = [max(map(height, run(Study(SPACE, {}, samples, seed, 8), honest))) for seed in seeds]
    chance = [by_chance(seed, samples) for seed in range(200)]
    assert np.mean(ours) > np.mean(chance) / 2  # half as far from the best, 0


def test_it_finds_nearly_what_a_brute_force_search_finds() -> None:
    rates, sizes, slopes = np.logspace(-6, -1, 26), np.logspace(0, 3, 31), np.linspace(0, 4, 17)
    grid = ({"kind": "steep", "rate": r, "size": s, "slope": p} for r in rates for s in sizes for p in slopes)
    best = max(map(height, grid))
    found = max(map(height, run(Study(SPACE, {}, 80, 0, 8), honest)))
    assert best - 0.1 < found <= 0


@pytest.mark.parametrize("method", ["lemo", "coreset", "subspace", "patchcore"])
def test_every_configuration_builds(method: str) -> None:
    fixed = {"form": "pseudo"} if method == "patchcore" else {}
    for params in run(Study(space(method, fixed), fixed, 20, 0, 8), lambda n, p: Told(COMPLETE, n % 5)):
        assert build(method, size=64, **fixed, **params).params.items() >= params.items()
