"""YAML that people write: merge keys and aliases work, within bounds, and a name stands once."""

from pathlib import Path
from typing import Any

import pytest
from everline.methods.errors import ConfigError
from everline.platform.settings import read_fleet
from everline.platform.yamlfile import Lined, read_yaml


def read(text: str, folder: Path, lines: bool = False) -> Any:
    (folder / "f.yaml").write_text(text)
    return read_yaml(folder / "f.yaml", "small", "a: 1", lines=lines)


def test_a_line_takes_over_the_settings_of_another(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(
        "lines:\n  a: &std {method: padim, threads: 2}\n  b: {<<: *std, threads: 3}\n  c: {threads: 4, <<: *std}\n"
    )
    lines = read_fleet(tmp_path / "fleet.yaml").lines
    assert [(name, one.method, one.threads) for name, one in lines.items()] == [
        ("a", "padim", 2), ("b", "padim", 3), ("c", "padim", 4)
    ]  # fmt: skip


@pytest.mark.parametrize("lines", [False, True])
def test_own_names_win_then_the_first_of_a_list_whatever_is_read_first(tmp_path: Path, lines: bool) -> None:
    text = "a: {x: {y: &deep {<<: &base {p: 1, q: 1, r: 1}, q: 2}}}\nb: {<<: [*deep, *base], r: 3}\nc: *deep\n"
    found = read(text, tmp_path, lines)
    assert found["b"] == {"p": 1, "q": 2, "r": 3}
    assert found["c"] == found["a"]["x"]["y"] == {"p": 1, "q": 2, "r": 1}
    if lines:
        assert isinstance(found["b"], Lined)
        assert found["b"].lines == {"p": 1, "q": 1, "r": 2}


def nested(inner: str, outer: str) -> str:
    """Nine levels, each of which has the one before nine times."""
    levels = [f"a0: &a0 {inner}"]
    levels += [f"a{n}: &a{n} {outer.replace('*', ', '.join([f'*a{n - 1}'] * 9))}" for n in range(1, 10)]
    return "\n".join(levels) + "\nstore: *a9\nlines: {m: {}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (nested("[x]", "[*]"), "with its aliases it has more than"),
        (nested("{k: x}", "{<<: [*]}"), "with its aliases it has more than"),
        (nested("{k: x}", "{<<: [*], own: 1}"), "with its aliases it has more than"),
        ("a: &a [*a]", "contains itself"),
        ("a: &a {<<: *a}", "contains itself"),
        ("a: &a {b: {<<: *a}}", "contains itself"),
        ("a: {<<: 3}", "for merging"),
        ("a: {<<: [3]}", "for merging"),
        ("s: &s {x: 1}\na: {<<: *s, y: 1, y: 2}", "y stands twice"),
        ("s: &s {x: 1, x: 2}\na: {<<: *s}", "x stands twice"),
        ("s: &s {x: 1}\na: {<<: *s, <<: *s}", "<< stands twice"),
        ("{[1]: 2}", "unhashable"),
        ("a: *b", "undefined alias"),
    ],
)
def test_what_multiplies_or_stands_twice_is_refused(text: str, message: str, tmp_path: Path) -> None:
    for lines in (False, True):
        with pytest.raises(ConfigError, match=message):
            read(text, tmp_path, lines)


def test_many_values_without_aliases_are_read(tmp_path: Path) -> None:
    assert len(read("[" + "a," * 9_000 + "]", tmp_path)) == 9_000
