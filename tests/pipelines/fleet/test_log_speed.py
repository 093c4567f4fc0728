"""`everline log speed`: it times what gives the right images back, and leaves nothing on the disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from everline.methods.errors import StoreError
from everline.pipelines.fleet.log_speed import speed, timed
from everline.platform.log import LogReader


def test_every_step_has_its_time_its_memory_and_some_a_ratio(tmp_path: Path) -> None:
    steps = timed(tmp_path, records=200, size=50, batch=7, reads=32)
    assert all(step.seconds > 0 and min(*step.rss_mib, *step.own_mib) > 1 for step in steps)
    assert [step.beside for step in steps if step.ratio] == [steps[0].what, "all images read, in order"]
    assert steps[1].ratio == pytest.approx(steps[1].seconds / steps[0].seconds)
    assert len(LogReader(tmp_path / "log")) == 200


def test_the_time_of_wrong_images_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = LogReader.get
    monkeypatch.setattr(LogReader, "get", lambda self, seqs: [replace(r, image=b"x") for r in real(self, seqs)])
    with pytest.raises(StoreError, match="other images"):
        timed(tmp_path, records=64, size=8, batch=64, reads=3)


def test_the_command_prints_the_table_and_tidies_up(tmp_path: Path) -> None:
    words = ["--records", "100", "--batch", "10", "--at", str(tmp_path), "--json", str(tmp_path / "out.json")]
    ran = CliRunner().invoke(speed, words, catch_exceptions=False)
    assert ran.exit_code == 0 and "plain" in ran.output  # the terminal may break the line behind it
    assert len(json.loads((tmp_path / "out.json").read_text())) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
