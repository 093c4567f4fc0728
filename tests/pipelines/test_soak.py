"""A short soak: processes killed, the store slow; nothing is lost, nothing learned twice."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from everline.pipelines.fleet.slow_store import Weather
from everline.pipelines.soak import most, slope


@pytest.mark.slow
def test_killed_lines_on_a_slow_store_end_as_lines_that_were_left_alone(
    parts: list[bytes], tmp_path: Path, sized: Callable[..., Any]
) -> None:
    lines, images, every, kills, slow_s = sized((1, 80, 30, 2, "2"), (2, 2000, 200, 9, "10"))
    (tmp_path / "parts").mkdir()
    for number, part in enumerate(parts):
        (tmp_path / f"parts/{number:02}.png").write_bytes(part)
    words = ["--data", "parts", "--images", str(images), "--kill-every", str(every), "--s3", "--slow-s", slow_s]
    words += ["--lines", str(lines), "--set", "size=64", "memory=100"]
    command = [sys.executable, "-m", "everline.pipelines.soak", *words, "--json", "found.json"]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert sum(row["kills"] for row in found["lines"]) >= kills
    for row in found["lines"]:
        assert (row["sent"], row["lost"], row["learned_twice"]) == (images // lines, 0, 0)
        assert row["log_ok"] and row["same_as_its_log"] and row["same_as_undisturbed"]
        assert row["versions"] >= 1
    assert found["slow_spells"] == 2 and found["slowed_requests"] > 0


def test_a_store_is_slow_for_a_while_and_refuses_a_part_of_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everline.pipelines.fleet.slow_store.DELAY_S", 0.0)
    weather = Weather(0.3)
    assert not any(weather.refuses() for _ in range(20))
    weather.begin()
    refused = [weather.refuses() for _ in range(100)]
    assert 20 < sum(refused) < 80 and weather.slowed == 100
    time.sleep(0.4)
    assert not weather.refuses()


def test_memory_grows_by_the_slope_of_a_line_through_all_looks() -> None:
    images = np.arange(0, 500, 50)
    assert slope(np.stack([images, 800 + 0.02 * images], 1)) == 20.0
    assert slope(np.array([[0, 1.0], [50, 2.0]])) is None
    assert (most(np.array([[0, 1.0], [50, 2.0]])), most(np.empty((0, 2)))) == (2.0, None)
