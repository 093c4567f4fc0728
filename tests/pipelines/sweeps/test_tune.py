"""`everline tune LINE` and `everline sweep --publish LINE`, on real logs and a real registry."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from everline.methods.errors import ConfigError, DataError, StoreError, UnknownLine
from everline.pipelines.main import cli
from everline.platform.log import LogReader
from everline.platform.settings import parse_line
from everline.platform.versions import Versions

Write = Callable[..., LogReader]
OWN = {"method": "subspace", "false_reject_rate": 0.2, "bits": 12, "params": {"size": 64, "sigma": 1.0}}


@pytest.fixture
def fleet_file(tracking_uri: str, tmp_path: Path) -> Path:
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump({"store": "store", "tracking": tracking_uri, "lines": {"mono": OWN}}), "utf-8")
    return file


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, words)))


def test_a_line_is_told_what_would_suit_it_and_why(
    write_log: Write, parts: list[bytes], fleet_file: Path, tmp_path: Path, tracking_uri: str
) -> None:
    write_log(parts, [("good", n) for n in range(30)])
    words = ["--method", "padim", "--samples", 2, "--no-ray", "--out", tmp_path / "out", "--publish"]
    ran = call("tune", "mono", "--fleet", fleet_file, *words, "--json", tmp_path / "found.json")
    assert ran.exit_code == 0, (ran.output, ran.exception)
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert (found["current"]["method"], found["current"]["searched"]) == ("subspace", {})
    assert {t["method"] for t in found["sweep"]["trials"]} == {"subspace", "padim"}
    assert {(t["params"]["size"], t["params"]["bits"]) for t in found["sweep"]["trials"]} == {(64, 12)}
    assert found["data"]["synthetic"] > 0 and "synthetic" in found["caveat"]
    assert found["change"] == (found["recommended"]["number"] != found["current"]["number"])
    assert (found["entry"] is not None) == found["change"]
    if found["change"]:
        entry = parse_line("mono", yaml.safe_load(found["entry"])["mono"])
        assert (entry.method, entry.false_reject_rate, entry.bits) == (found["recommended"]["method"], 0.2, 12)
    candidate = Versions(tracking_uri, "mono").candidate()
    assert found["published"]["version"] == candidate is not None


def test_a_line_that_was_tuned_in_part_goes_on_with_the_images_of_then(
    write_log: Write, parts: list[bytes], fleet_file: Path, tmp_path: Path
) -> None:
    write_log(parts, [("good", n) for n in range(30)])
    words = ["tune", "mono", "--fleet", fleet_file, "--no-ray", "--out", tmp_path / "out", "--json"]
    assert call(*words, tmp_path / "first.json", "--method", "padim", "--samples", 2).exit_code == 0
    (left, *_) = sorted((tmp_path / "out/trials").glob("*.json"))
    left.unlink()  # as if it had been stopped there
    write_log(parts, [("good", n) for n in range(30, 40)])
    ran = call(*words, tmp_path / "second.json", "--resume")
    assert ran.exit_code == 0, (ran.output, ran.exception)
    first, second = (json.loads((tmp_path / name).read_text("utf-8")) for name in ("first.json", "second.json"))
    alike = ("line", "change", "entry", "data", "caveat")
    assert {name: first[name] for name in alike} == {name: second[name] for name in alike}
    assert left.is_file()


def test_what_goes_on_cannot_be_asked_for_something_else(fleet_file: Path, tmp_path: Path, write_log: Write) -> None:
    write_log([], [])
    words = ["tune", "mono", "--fleet", fleet_file, "--no-ray", "--resume"]
    assert "needs --out" in str(call(*words).exception)
    refused = call(*words, "--out", tmp_path, "--samples", 4, "--most", 9).exception
    assert isinstance(refused, ConfigError) and "leave out --samples, --most" in str(refused)
    assert "no sweep to go on with" in str(call(*words, "--out", tmp_path).exception)


@pytest.mark.parametrize(("line", "error"), [("poly", UnknownLine), ("mono", StoreError)])
def test_a_line_without_a_log_is_refused(fleet_file: Path, tmp_path: Path, line: str, error: type) -> None:
    ran = call("tune", line, "--fleet", fleet_file, "--no-ray", "--out", tmp_path / "out")
    assert isinstance(ran.exception, error)


def test_defects_are_not_made_up_against_ones_will(
    write_log: Write, parts: list[bytes], fleet_file: Path, tmp_path: Path
) -> None:
    write_log(parts, [("good", n) for n in range(30)])
    words = ["--no-synthetic", "--no-ray", "--out", tmp_path / "out"]
    assert isinstance(call("tune", "mono", "--fleet", fleet_file, *words).exception, DataError)


def test_a_winner_is_registered_as_candidate(
    write_disc: Callable[..., Path], fleet_file: Path, tmp_path: Path, tracking_uri: str
) -> None:
    root = write_disc(tmp_path / "bolt", 10, 6, 6)
    other = write_disc(tmp_path / "nut", 10, 6, 6)
    words = ["--method", "padim", "--set", "size=64", "--no-ray", "--publish", "mono", "--fleet", fleet_file]
    both = call("sweep", "--data", root, other, *words, "--out", tmp_path / "both")
    assert isinstance(both.exception, ConfigError) and "several tasks" in str(both.exception)
    ran = call("sweep", "--data", root, *words, "--out", tmp_path / "out", "--json", tmp_path / "found.json")
    assert ran.exit_code == 0, (ran.output, ran.exception)
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    (version,) = Versions(tracking_uri, "mono").list()
    assert found["published"]["version"] == version.version and version.aliases == ("candidate",)
    assert version.tags["sweep"] == str(tmp_path / "out")
