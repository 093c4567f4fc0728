"""A fleet file: defaults, checks, and errors that say where and what."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from everline.methods.errors import ConfigError, UnknownLine, UnknownName
from everline.platform.settings import parse_fleet, parse_line, read_fleet


def test_a_small_file_is_enough(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text("store: data\ntracking: sqlite:///data/m.db\nlines: {a: {method: padim}}\n")
    fleet = read_fleet(tmp_path / "fleet.yaml")
    assert fleet.store == tmp_path / "data"
    assert fleet.tracking == f"sqlite:///{tmp_path}/data/m.db"
    assert fleet.line("a").method == "padim"
    assert fleet.line("a").false_reject_rate == 0.01


def test_a_mark_at_the_beginning_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_bytes(b"\xef\xbb\xbflines: {a: {method: padim}}\n")
    assert list(read_fleet(tmp_path / "fleet.yaml").lines) == ["a"]


def test_the_defaults_of_the_defaults(tmp_path: Path) -> None:
    fleet = parse_fleet({"lines": {"a": None}}, tmp_path)
    assert fleet.line("a").method == "coreset"
    assert fleet.tracking.startswith("sqlite:///")


def test_a_server_address_stays_as_it_is(tmp_path: Path) -> None:
    assert parse_fleet({"tracking": "http://127.0.0.1:5000", "lines": {"a": {}}}, tmp_path).tracking.endswith(":5000")


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ([], "expected names"),
        ({}, "no lines"),
        ({"lines": {"a": {}}, "stroe": "x"}, "'stroe'; did you mean store"),
        ({"lines": {"../a": {}}}, "name"),
        ({"lines": {".a": {}}}, "name"),
        ({"lines": {"a": {"methd": "padim"}}}, "line a.*'methd'; did you mean method"),
        ({"lines": {"a": {"method": "padmi"}}}, "'padmi'; did you mean padim"),
        ({"lines": {"a": {"params": {"sede": 1}}}}, "'sede'; did you mean.*seed"),
        ({"lines": {"a": {"params": {"device": "cpu"}}}}, "setting of the line"),
        ({"lines": {"a": {"method": "smcc", "params": {"epochs": 3}}}}, "smcc .* cannot learn one image at a time"),
        ({"store": [1, 2], "lines": {"a": {}}}, "store must be text"),
        ({"lines": {"a": {"false_reject_rate": 2}}}, "false_reject_rate must be in"),
        ({"lines": {"a": {"threads": "many"}}}, "threads must be a whole number"),
    ],
)
def test_mistakes_are_named(plain: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_fleet(plain, tmp_path)


def test_bits_are_what_the_detector_is_made_with() -> None:
    line = parse_line("a", {"method": "padim", "bits": 12, "params": {"size": 64}})
    assert line.params == {"size": 64, "bits": 12} and replace(line, threads=2).params == line.params
    for given, said in (
        ({"bits": 11}, "bits must be in 0 | 8 | 10"),
        ({"params": {"bits": 12}}, "put it one level up"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            parse_line("a", {"method": "padim", **given})


def test_a_missing_file_shows_a_sample(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="A small one"):
        read_fleet(tmp_path / "fleet.yaml")


@pytest.mark.parametrize("text", ["a: [", "lines: {a: {}, a: {}}", "!!python/object/apply:os.system ['true']", "\x00"])
def test_hostile_yaml_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(ConfigError):
        read_fleet(tmp_path / "f.yaml")


def test_an_unknown_line_is_told_the_known_ones(tmp_path: Path) -> None:
    fleet = parse_fleet({"lines": {"mono": {}, "poly": {}}}, tmp_path)
    with pytest.raises(UnknownLine, match="mono, poly"):
        fleet.line("momo")


def test_unknown_names_are_config_errors() -> None:
    assert issubclass(UnknownName, ConfigError)


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    line = {"method": "efficientad", "params": {"teacher": "~/t.safetensors"}}
    own = {"store": "~/x", "tracking": "sqlite:///~/m.db", "artifacts": "~/files", "lines": {"a": line}}
    fleet = parse_fleet(own, tmp_path)
    assert (fleet.store, fleet.tracking) == (home / "x", f"sqlite:///{home}/m.db")
    assert fleet.artifacts == (home / "files").as_uri()
    assert fleet.line("a").params == {"teacher": f"{home}/t.safetensors"}
    assert parse_fleet({"store": "s3://bucket/~x", "spool": "~/s", "lines": {"a": {}}}, tmp_path).spool == home / "s"
    assert parse_fleet({"store": "./~x", "lines": {"a": {}}}, tmp_path).store == tmp_path / "~x"
    with pytest.raises(ConfigError, match="no home folder is known for ~nobody-is-called-so; write"):
        parse_fleet({"store": "~nobody-is-called-so/x", "lines": {"a": {}}}, tmp_path)
