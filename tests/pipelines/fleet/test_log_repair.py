"""`everline log verify` and `log repair` on a log that lost files, as typed."""

from pathlib import Path

import pytest
from everline.platform.log import LogReader, LogWriter
from everline.platform.record import Record
from everline.platform.repair import LOST

from ...conftest import typed

FLEET = """\
store: store
tracking: sqlite:///mlflow.db
lines:
  mono: {method: lemo, params: {size: 64}}
"""


@pytest.fixture
def log(tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three records in a log that lost its manifests; the current folder has the fleet file."""
    (tmp_path / "fleet.yaml").write_text(FLEET)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "store" / "mono"
    with LogWriter.open(folder) as writer:
        writer.append([Record("image", f"i{n}", image=b"x") for n in range(3)])
    for manifest in folder.glob("manifest-*"):
        manifest.unlink()
    return folder


def test_verify_says_what_lies_there_and_repair_makes_the_manifest(log: Path) -> None:
    said = typed("log", "verify", "mono")
    assert said.code == 1
    (shard,) = (path.name for path in log.glob("shard-*"))
    assert f"its manifests are missing; records lie in {shard}" in " ".join(said.out.split())
    said = typed("log", "repair", "mono")
    assert (said.code, said.out) == (0, f"mono: 3 records; its manifest was made again from {shard}\n")
    assert typed("log", "verify", "mono").code == 0
    assert typed("log", "repair", "mono").out == "mono: 3 records; its manifest is whole\n"


def test_what_is_lost_is_accepted_by_somebody(log: Path) -> None:
    next(log.glob("shard-*")).unlink()
    (log / "checkpoints" / "000000000002").mkdir(parents=True)
    (log / "checkpoints" / "000000000002" / "checkpoint.json").write_text("{}")
    said = typed("log", "verify", "mono")
    assert said.code == 1
    assert "checkpoint 2 has seen record 2: 3 acknowledged records are missing" in " ".join(said.out.split())
    said = typed("log", "repair", "mono")
    assert said.code == 1
    assert "log repair mono --accept-loss" in " ".join(said.err.split())
    found = typed("log", "repair", "mono", "--accept-loss", "--by", "anna", "--json", "-").json
    assert (found["records"], found["missing"]) == (1, [[0, 2]])
    (record,) = LogReader(log).of_kind(LOST)
    assert record.data["by"] == "anna"
    assert typed("log", "verify", "mono").code == 0
