"""The store format's example for Ray, and Ray's own reader of an export: neither imports everline."""

import re
import sys
from pathlib import Path

import pytest
from everline.pipelines.fleet.log_export import Chosen, write
from everline.platform import log
from everline.platform.log import LogReader, LogWriter
from everline.platform.record import Record

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray Data's, some of its own settings
PAGE = Path(__file__).parents[3] / "docs" / "store-format.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(log, "SEAL_RECORDS", 5)
    with LogWriter.open(tmp_path / "log") as writer:
        writer.append([Record("publish", "p", version=1)])
        for n in range(12):
            writer.append([Record("image", f"i{n}", image=bytes(n), verdict="pass")])
    return tmp_path / "log"


@pytest.mark.slow
def test_ray_reads_a_log_without_everline(
    folder: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = [one for one in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL) if "ray" in one]
    assert "everline" not in code
    monkeypatch.setattr(sys, "argv", ["read.py", str(folder)])
    exec(compile(code, "read.py", "exec"), {"__name__": "example"})  # in this process, which has a cluster
    assert "12 images, 66 bytes" in capsys.readouterr().out


@pytest.mark.slow
def test_ray_reads_an_export(folder: Path, ray_session: None, tmp_path: Path) -> None:
    import ray

    write(LogReader(folder), "mono", tmp_path / "out", "parquet", Chosen(), lambda seq: None)
    ray.data.DataContext.get_current().enable_progress_bars = False
    found = ray.data.read_parquet(str(tmp_path / "out"), file_extensions=["parquet"])
    rows = sorted(found.take_all(), key=lambda row: row["seq"])
    assert [(row["seq"], row["image"]) for row in rows[1:]] == [(n + 1, bytes(n)) for n in range(12)]
