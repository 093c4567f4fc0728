"""`everline log clock`, as typed."""

from pathlib import Path

import pytest
from everline.platform.ages import CLOCK
from everline.platform.log import LogReader, LogWriter
from everline.platform.record import Record
from everline.platform.retention import DAY_NS

from ...conftest import typed

FLEET = """\
store: store
tracking: sqlite:///mlflow.db
lines:
  mono: {method: lemo, params: {size: 64}, keep_days: 30}
"""


def test_a_jump_is_shown_and_somebody_says_that_the_times_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fleet.yaml").write_text(FLEET)
    monkeypatch.chdir(tmp_path)
    with LogWriter.open(tmp_path / "store" / "mono") as writer:
        writer.append([Record("image", f"i{n}", 60 * DAY_NS * n, b"x") for n in range(2)])
    assert typed("log", "clock", "mono").out == "  record 1: by +60.00 days\nmono: its times jump once\n"
    found = typed("log", "clock", "mono", "--right", "--by", "anna", "--json", "-").json
    assert [jump["seq"] for jump in found["jumps"]] == [1]
    (said,) = LogReader(tmp_path / "store" / "mono").of_kind(CLOCK)
    assert said.data == {"right": True, "by": "anna"}
    assert typed("log", "clock", "mono").out == "mono: its times do not jump\n"
    again = typed("log", "clock", "mono", "--right")
    assert again.code == 2 and "do not jump; there is nothing to say" in " ".join(again.err.split())
