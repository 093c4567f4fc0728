"""The benchmark of shared features: one row a folder, as a table and as JSON."""

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner
from everline.pipelines.sweeps.sharing import sharing


def test_the_command_times_each_folder(tmp_path: Path, write_disc: Callable[..., Path]) -> None:
    folders = [write_disc(tmp_path / name, 4, 2, 2) for name in ("disc", "bolt")]
    words = ["--data", *map(str, folders), "--size", "64", "--method", "padim", "--set", "weights=none"]
    ran = CliRunner().invoke(sharing, [*words, "--json", str(tmp_path / "r.json")], catch_exceptions=False)
    assert ran.exit_code == 0 and "ratio" in ran.output
    plain = json.loads((tmp_path / "r.json").read_text())
    assert [row["task"] for row in plain["tasks"]] == ["disc", "bolt"]
    assert all(row["images"] == 8 and row["bytes"] > 8 * 176 * 64 * 4 and row["ratio"] > 0 for row in plain["tasks"])
    assert plain["params"]["size"] == 64
