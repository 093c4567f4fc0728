"""Starts that lead nowhere are counted, on disk, until something has come of one."""

import os
import time
from pathlib import Path

import pytest
from everline.methods.errors import Corrupt, LineStopped
from everline.platform import trouble
from everline.platform.trouble import STARTS, Trouble, begin, clear, failed, forgive, read_trouble


def test_so_many_starts_and_no_more(tmp_path: Path) -> None:
    for _ in range(STARTS):
        begin(tmp_path, "mono")
    with pytest.raises(LineStopped, match=rf"line mono was stopped after {STARTS} starts: .*without a word.*up"):
        begin(tmp_path, "mono")
    clear(tmp_path)
    assert begin(tmp_path, "mono") == Trouble()


def test_the_last_error_is_told(tmp_path: Path) -> None:
    for number in range(STARTS):
        begin(tmp_path, "mono")
        failed(tmp_path, Corrupt(f"shard {number} is bad."))
    with pytest.raises(LineStopped, match=r"shard 4 is bad; mend it"):
        begin(tmp_path, "mono")
    failed(tmp_path, MemoryError("no more"))
    assert read_trouble(tmp_path).error == "MemoryError: no more"


def test_what_was_not_its_fault_is_not_counted(tmp_path: Path) -> None:
    for _ in range(3 * STARTS):
        forgive(tmp_path, begin(tmp_path, "mono"))
    begin(tmp_path, "mono")
    forgive(tmp_path, begin(tmp_path, "mono"))
    assert read_trouble(tmp_path).starts == 1


def test_an_hour_without_a_start_is_an_end_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(STARTS):
        begin(tmp_path, "mono")
    later = time.time() + trouble.WINDOW_S + 1
    monkeypatch.setattr(trouble.time, "time", lambda: later)
    assert begin(tmp_path, "mono") == Trouble()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"starts": "x", "at": 0, "error": ""}', "\xff"])
def test_a_file_that_cannot_be_read_stops_no_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "trouble.json").write_text(text, "latin-1")
    assert read_trouble(tmp_path) == Trouble()
    begin(tmp_path, "mono")
    assert read_trouble(tmp_path).starts == 1
    assert os.listdir(tmp_path) == ["trouble.json"]


def test_a_folder_that_cannot_be_written_stops_no_line(tmp_path: Path) -> None:
    (tmp_path / "mono").write_text("no folder")
    begin(tmp_path / "mono", "mono")
    failed(tmp_path / "mono", Corrupt("bad"))
    clear(tmp_path / "mono")
