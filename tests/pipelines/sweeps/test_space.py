"""What a sweep tries of a method: declared, less what is fixed, conditions before what hangs on them."""

from typing import Any

import pytest
from everline.methods.errors import ConfigError, UnknownName
from everline.methods.params import table
from everline.methods.registry import METHODS, build
from everline.pipelines.sweeps.space import CHOICE, FLOAT, INT, Dimension, space


def named(method: str, only: tuple[str, ...] = (), **fixed: Any) -> dict[str, Dimension]:
    return {one.name: one for one in space(method, fixed, only)}


def test_a_range_a_scale_and_choices_come_as_declared() -> None:
    found = named("lemo")
    assert found["prototypes"] == Dimension("prototypes", INT, 10, 4, 128, log=True)
    assert found["lr"] == Dimension("lr", FLOAT, 1e-4, 1e-6, 1e-2, log=True)
    assert found["update"] == Dimension("update", CHOICE, "L", choices=("none", "L", "F"))
    assert found["momentum"].when == ("update", ("F",))


def test_more_than_two_numbers_are_choices() -> None:
    assert named("draem")["filter"] == Dimension("filter", CHOICE, 21, choices=(1, 5, 11, 21, 31))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_condition_comes_before_what_hangs_on_it(method: str) -> None:
    names = [one.name for one in space(method, {})]
    assert names and len(set(names)) == len(names)
    for at, one in enumerate(space(method, {})):
        assert one.when is None or one.when[0] in names[:at]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_says_where_and_from_what_to_run_is_never_searched(method: str) -> None:
    searched = {name for name, _, _, spec in table(METHODS[method]) if spec.search}
    assert not searched & {"size", "seed", "device", "backbone", "weights", "strides", "form", "teacher"}


def test_conditions_are_sorted_whatever_the_order_of_the_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(table(METHODS["lemo"]))
    monkeypatch.setattr("everline.pipelines.sweeps.space.table", lambda cls: iter(rows[::-1]))
    names = [one.name for one in space("lemo", {})]
    assert names.index("update") < min(names.index("momentum"), names.index("min_share"))


def test_what_is_fixed_is_not_searched() -> None:
    assert "memory" in named("coreset")
    assert "memory" not in named("coreset", memory=300)


def test_a_condition_that_is_fixed_is_decided() -> None:
    assert "aligned" not in named("coreset", positions="off")
    assert named("coreset", positions="auto")["aligned"].when is None
    assert not {"waiting", "newcomers"} & named("coreset", guard="0").keys()
    assert {"waiting", "newcomers"} <= named("coreset", guard=70).keys()


def test_a_condition_that_is_not_searched_is_decided_by_its_default() -> None:
    assert not {"first", "momentum", "gate"} & named("patchcore").keys()
    assert {"first", "momentum"} <= named("patchcore", form="ema").keys()
    assert "gate" not in named("patchcore", form="ema")
    assert {"first", "gate"} <= named("patchcore", form="pseudo").keys()
    assert "shrinkage" in named("lemo") and "attraction" not in named("lemo")
    assert "attraction" in named("lemo", whiten=False) and "shrinkage" not in named("lemo", whiten=False)


def test_only_limits_and_names_of_other_methods_are_theirs() -> None:
    assert list(named("lemo", ("lr", "lemo.shrinkage", "kng.nodes", "gate"))) == ["shrinkage", "lr"]
    assert list(named("coreset", ("lr", "lemo.shrinkage"))) == []


def test_only_with_a_dependent_alone_goes_by_the_default_of_its_condition() -> None:
    assert list(named("coreset", ("aligned",))) == ["aligned"]
    assert list(named("lemo", ("momentum",))) == []


def test_only_refuses_what_declares_no_search() -> None:
    with pytest.raises(ConfigError, match=r"lemo: dim declares no search.*lr"):
        space("lemo", {}, ("lemo.dim", "lr"))


def test_what_is_fixed_must_be_known_and_in_range() -> None:
    with pytest.raises(UnknownName, match="memry"):
        space("coreset", {"memry": 3})
    with pytest.raises(ConfigError, match="guard"):
        space("coreset", {"guard": -1})


@pytest.mark.parametrize("method", sorted({name for name, cls in METHODS.items() if cls.traits.memory}))
def test_the_size_of_a_memory_is_searched_and_fixed_by_its_name(method: str) -> None:
    memory = METHODS[method].traits.memory
    assert memory in named(method)
    assert memory not in named(method, **{memory: 100})
    assert build(method, size=64, **{memory: 100}).params[memory] == 100


def test_the_methods_with_a_memory_that_can_be_set() -> None:
    kept = {name: cls.traits.memory for name, cls in METHODS.items() if cls.traits.memory}
    want = {"lemo": "prototypes", "coreset": "memory", "kng": "nodes", "patchcore": "memory", "smcc": "bank"}
    assert kept == want
