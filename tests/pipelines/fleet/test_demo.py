"""The main job, small: everything it promises is in its summary."""

import json
from pathlib import Path

import numpy as np
import pytest
from everline.methods.errors import ConfigError
from everline.pipelines.fleet.demo import fresh_fleet
from everline.pipelines.fleet.demo_report import choose
from everline.pipelines.fleet.undisturbed import Kept

from ...conftest import typed


def test_only_a_folder_of_an_earlier_demo_is_emptied(tmp_path: Path) -> None:
    fresh_fleet(tmp_path / "a", 0, 64)
    (tmp_path / "a" / "old").touch()
    fresh_fleet(tmp_path / "a", 0, 64)
    assert not (tmp_path / "a" / "old").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "precious").touch()
    with pytest.raises(ConfigError, match="not empty"):
        fresh_fleet(tmp_path / "b", 0, 64)
    assert (tmp_path / "b" / "precious").exists()


def test_the_pictures_are_the_best_the_worst_and_the_wrong() -> None:
    labels = np.array([False, False, True, True])
    answers = [{"score": s, "verdict": v} for s, v in [(1, "pass"), (9, "reject"), (8, "reject"), (2, "pass")]]
    found = choose(labels, answers)
    assert found == {
        "the defects it is surest of": [2, 3],
        "the good cells it is surest of": [0, 1],
        "good cells that it rejects": [1],
        "defects that it misses": [3],
    }


def test_versions_in_memory_count_from_one() -> None:
    kept = Kept()
    assert kept.current() is None
    assert kept.publish("s", "c", watermark=0, key="k", tags={}) == 1
    assert kept.load(1) == ("s", "c")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_small_demo_keeps_every_promise(tmp_path: Path) -> None:
    pytest.importorskip("elpv_dataset")
    said = typed("demo", "--out", tmp_path / "demo", "--images", 110, "--held-out", 0.1, "--size", 96)
    assert said.code == 0, said.err
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert set(summary["lines"]) == {"mono", "poly"}
    for line in summary["lines"].values():
        assert (line["lost"], line["learned_twice"], line["resumed_identical"]) == (0, 0, True)
        assert line["images_learned"] + line["not_admitted"] == 110
        assert line["auroc_curve"][-1][0] == 110
        assert 0.7 < line["auroc_http"] <= 1
        assert len(line["versions"]) >= 2
        assert 0 < line["latency_ms"]["p50"] <= line["latency_ms"]["p99"]
        assert min(line["images_per_s"], line["state_bytes"]) > 0
    mono = summary["lines"]["mono"]
    assert mono["killed_after"] == 55
    assert mono["rollback"]["ok"]
    assert mono["rollback"]["answered_by"] == [mono["rollback"]["to"]]
    assert summary["seconds"] > 0
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "<svg" in page
    assert "data:image/" in page
    assert "everline serve --fleet" in said.out
