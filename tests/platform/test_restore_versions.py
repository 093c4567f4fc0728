"""An MLflow that was lost gets a line's versions again from its log, under their numbers, to the last bit."""

from dataclasses import replace
from pathlib import Path

import pytest
from everline.methods.errors import TrackingError
from everline.platform.line import Line
from everline.platform.log import LogReader
from everline.platform.restore_versions import restore_versions
from everline.platform.statefiles import digest
from everline.platform.versions import Versions

from ..conftest import copied_tracking, typed
from .lines import QUICK


def folder_of(store: Path) -> LogReader:
    return LogReader(store / "mono")


def bits(versions: Versions) -> dict[int, str]:
    return {one.version: digest(versions.load(one.version)[0]) + one.key for one in versions.list()}


@pytest.mark.slow
def test_versions_come_back_with_their_numbers_and_bits_and_the_line_goes_on(
    tracking_uri: str, prepared_tracking: Path, tmp_path: Path, parts: list[bytes]
) -> None:
    store, before = tmp_path / "store", Versions(tracking_uri, "mono")
    line = Line("mono", QUICK, store, before)
    for index, data in enumerate(parts):
        line.inspect(data, f"i{index}")
    line.rollback(1)
    line.close()
    (tmp_path / "new").mkdir()
    new = Versions(copied_tracking(prepared_tracking, tmp_path / "new"), "mono")
    done = restore_versions(new, folder_of(store), QUICK)
    assert (done.restored, done.known, done.lost, done.current) == ([1, 2], [], {}, 1)
    assert bits(new) == bits(before)
    assert new.current() == 1
    again = restore_versions(new, folder_of(store), QUICK)
    assert (again.restored, again.known) == ([], [1, 2])
    line = Line("mono", QUICK, store, new)
    assert line.inspect(parts[0], "next").version == 1
    line.close()


@pytest.mark.slow
def test_what_cannot_be_had_to_the_last_bit_is_not_registered(
    tracking_uri: str, prepared_tracking: Path, tmp_path: Path, parts: list[bytes]
) -> None:
    store = tmp_path / "store"
    line = Line("mono", QUICK, store, Versions(tracking_uri, "mono"))
    for index, data in enumerate(parts):
        line.inspect(data, f"i{index}")
    line.close()
    (tmp_path / "new").mkdir()
    new = Versions(copied_tracking(prepared_tracking, tmp_path / "new"), "mono")
    with pytest.raises(TrackingError, match="everline versions mono --restore"):
        Line("mono", QUICK, store, new)
    done = restore_versions(new, folder_of(store), replace(QUICK, params={"size": 64, "seed": 4}))
    assert list(done.lost) == [1] and "other bits" in done.lost[1]
    assert (done.restored, done.current) == ([2], 2), "the current one comes from the line's own copy"
    assert [one.version for one in new.list()] == [2]
    late = restore_versions(new, folder_of(store), QUICK)
    assert late.lost == {1: "MLflow has given its number to another version"}


def test_the_command_says_what_it_did(tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fleet.yaml").write_text(f"store: store\ntracking: {tracking_uri}\nlines:\n  mono: {{method: lemo}}\n")
    monkeypatch.chdir(tmp_path)
    said = typed("versions", "mono", "--restore")
    assert said.code == 0
    assert said.out == "mono: 0 versions registered again, 0 were there, 0 are lost; current: none\n"
