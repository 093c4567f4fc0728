"""Runs read back from MLflow: whole ones of an experiment, one by the start of its id, texts of a size allowed."""

from dataclasses import replace
from pathlib import Path

import pytest
from everline.methods.errors import ConfigError, DataError, TrackingError, UnknownName
from everline.platform import runs_read
from everline.platform.runs import Run, record_run
from everline.platform.runs_read import find_run, finished_runs, run_text
from everline.platform.tracking import connect

RUN = Run("things", "one", artifacts={"record.json": '{"ü": 1}\n'})


def test_finished_runs_come_oldest_first_children_too(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = record_run(tracking_uri, replace(RUN, children=[Run("things", "child")]))
    second = record_run(tracking_uri, RUN)
    record_run(tracking_uri, replace(RUN, experiment="others"))
    monkeypatch.setattr(runs_read, "PAGE", 1)
    found = finished_runs(tracking_uri, "things")
    assert len(found) == 3 and found[-1] == second and first in found[:2]


def test_runs_that_did_not_end_well_or_were_deleted_are_none(tracking_uri: str) -> None:
    client = connect(tracking_uri)
    broken, gone, good = (record_run(tracking_uri, RUN) for _ in range(3))
    client.set_terminated(broken, "FAILED")
    client.delete_run(gone)
    assert finished_runs(tracking_uri, "things") == [good]
    for run_id, said in ((broken, "is FAILED"), (gone, "is deleted")):
        with pytest.raises(TrackingError, match=said):
            find_run(tracking_uri, run_id)
    with pytest.raises(UnknownName, match="there is no run"):
        find_run(tracking_uri, gone[:12])


def test_a_run_is_found_by_eight_digits_in_any_experiment(tracking_uri: str) -> None:
    run_id = record_run(tracking_uri, replace(RUN, experiment="others"))
    record_run(tracking_uri, RUN)
    assert find_run(tracking_uri, run_id[:8]) == find_run(tracking_uri, run_id) == run_id


def test_digits_that_several_runs_start_with_are_refused(tracking_uri: str) -> None:
    first, second = (record_run(tracking_uri, RUN) for _ in range(2))
    shared = next((n for n in range(32) if first[n] != second[n]), 32)
    with pytest.raises(ConfigError, match=f"several runs start with {first[:shared]} .*give more digits"):
        find_run(tracking_uri, first[:shared])


@pytest.mark.parametrize("prefix", ["0" * 8, "0" * 32])
def test_a_run_that_is_not_there_is_named(tracking_uri: str, prefix: str) -> None:
    with pytest.raises(UnknownName, match=f"there is no run {prefix}"):
        find_run(tracking_uri, prefix)


def test_an_experiment_that_is_not_there_gets_the_nearest(tracking_uri: str) -> None:
    record_run(tracking_uri, RUN)
    with pytest.raises(UnknownName, match="unknown experiment 'thing'; did you mean things"):
        finished_runs(tracking_uri, "thing")


def test_a_text_comes_back_as_it_was_kept(tracking_uri: str) -> None:
    run_id = record_run(tracking_uri, RUN)
    assert run_text(tracking_uri, run_id, "record.json", 100) == '{"ü": 1}\n'
    assert run_text(tracking_uri, run_id, "other.json", 100) is None


def test_a_text_that_is_too_large_or_none_is_refused(tracking_uri: str, tmp_path: Path) -> None:
    run_id = record_run(tracking_uri, RUN)
    with pytest.raises(DataError, match="10 bytes; at most 9 are read"):
        run_text(tracking_uri, run_id, "record.json", 9)
    (file,) = tmp_path.glob("mlartifacts/**/record.json")
    file.write_bytes(b"\xff")
    with pytest.raises(DataError, match="not text in UTF-8"):
        run_text(tracking_uri, run_id, "record.json", 100)


def test_a_store_that_does_not_answer_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="no such database"):
        find_run(f"sqlite:///{tmp_path}/none.db", "0" * 32)
    with pytest.raises(ConfigError, match="expected sqlite"):
        finished_runs("./mlruns", "things")
