"""Parameters as data: parsing, ranges, and messages that name the culprit."""

from dataclasses import dataclass

import pytest
from everline.methods import params
from everline.methods.errors import ConfigError, UnknownName
from everline.methods.params import param


@dataclass(kw_only=True)
class Sample:
    count: int = param(3, "how many", low=1, high=9)
    rate: float = param(0.5, "how fast", low=0, high=1, open_low=True, unit="1/s")
    mode: str = param("a", "which way", choices=("a", "b"))
    flag: bool = param(False, "whether")
    strides: tuple[int, ...] = param((4, 8), "maps", choices=(4, 8, 16))


def parse(**given: object) -> dict[str, object]:
    return params.parse(Sample, given, "sample")


def test_strings_from_the_command_line_become_values() -> None:
    got = parse(count="4", rate="1", mode="b", flag="true", strides="8,16")
    assert got == {"count": 4, "rate": 1.0, "mode": "b", "flag": True, "strides": (8, 16)}


def test_lists_from_yaml_become_tuples() -> None:
    assert parse(strides=[16])["strides"] == (16,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 0),
        ("count", 10),
        ("count", 2.5),
        ("count", True),
        ("count", "many"),
        ("rate", 0),
        ("rate", 1.1),
        ("rate", "nan"),
        ("mode", "c"),
        ("flag", "perhaps"),
        ("strides", "4,5"),
        ("strides", []),
    ],
)
def test_wrong_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        parse(**{name: value})


def test_unknown_name_gets_the_nearest_valid_ones() -> None:
    with pytest.raises(UnknownName, match=r"'cuont'; did you mean count\?.*rate"):
        parse(cuont=1)


def test_range_is_told_in_words() -> None:
    spec = {name: p.range for name, _, _, p in params.table(Sample)}
    assert spec["rate"] == "(0, 1]"
    assert spec["count"] == "[1, 9]"
    assert spec["mode"] == "a | b"
