"""The recommended entry: short, readable by the fleet's own reader, and what it says."""

from pathlib import Path

import pytest
import yaml
from everline.methods.errors import ConfigError, UnknownName
from everline.methods.registry import build
from everline.pipelines.sweeps.recommend import fleet_entry
from everline.platform.settings import LineSettings, parse_fleet, parse_line

LINE = LineSettings(method="lemo", false_reject_rate=0.02, threads=2, params={"size": 96, "temperature": 0.3})


def test_it_holds_what_differs_and_the_rest_of_the_lines_entry() -> None:
    text = fleet_entry("mono", LINE, "padim", {"size": 64, "seed": 0, "sigma": 4.0})
    assert yaml.safe_load(text) == {
        "mono": {"method": "padim", "false_reject_rate": 0.02, "threads": 2, "params": {"size": 64}}
    }


def test_parameters_of_the_same_method_stay_unless_the_sweep_says_otherwise() -> None:
    plain = yaml.safe_load(fleet_entry("mono", LINE, "lemo", {"temperature": 0.5}))
    assert plain["mono"]["params"] == {"size": 96, "temperature": 0.5}


def test_bits_stay_a_setting_of_the_line_whatever_the_method() -> None:
    line = LineSettings(method="lemo", bits=12, params={"size": 96})
    for name, params in (("padim", {"size": 64}), ("lemo", {"temperature": 0.5}), ("padim", {"size": 64, "bits": 12})):
        plain = yaml.safe_load(fleet_entry("mono", line, name, params))
        assert plain["mono"]["bits"] == 12 and "bits" not in plain["mono"]["params"]
        assert parse_line("mono", plain["mono"]).params["bits"] == 12


def test_all_defaults_make_the_shortest_entry() -> None:
    assert fleet_entry("mono", LineSettings(), "coreset", {}) == "mono:\n  method: coreset\n"


def test_it_reads_back_in_a_fleet_file(tmp_path: Path) -> None:
    given = {"strides": (8, 16), "size": "64", "sigma": 2, "device": "cpu"}
    plain = yaml.safe_load(fleet_entry("mono", LINE, "padim", given))
    fleet = parse_fleet({"lines": plain}, tmp_path)
    read = fleet.line("mono")
    assert build(read.method, **read.params).params == build("padim", strides=(8, 16), size=64, sigma=2.0).params
    assert parse_line("mono", plain["mono"]) == read


def test_what_the_method_or_a_line_refuses_is_refused() -> None:
    with pytest.raises(UnknownName, match="temprature"):
        fleet_entry("mono", LINE, "lemo", {"temprature": 1})
    with pytest.raises(ConfigError, match="one image at a time"):
        fleet_entry("mono", LINE, "smcc", {"epochs": 3})
