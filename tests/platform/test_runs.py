"""Runs in MLflow: what is recorded is what its own search finds, whole or marked as failed."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from everline.methods.errors import ConfigError, EverlineError, TrackingError
from everline.platform import runs
from everline.platform.runs import (
    PARENT,
    Run,
    add_run,
    begin_run,
    drop_run,
    end_run,
    legal,
    record_run,
    resume_run,
    runs_with,
)
from everline.platform.tracking import connect, prepare_tracking

RUN = Run(
    experiment="things",
    name="one",
    params={"rate": 0.25, "on": True, "size": 64, "how": "plain"},
    tags={"kind": "test"},
    metrics={"auroc": 0.5, "bolt/auroc": 0.25},
    series={"curve/bolt/auroc": [(1, 0.125), (4, 0.25)]},
    artifacts={"record.json": '{"ü": 1}\n'},
)


def found(uri: str, experiment: str = "things", **how: Any) -> list[Any]:
    """The runs of an experiment, as MLflow alone finds them."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    known = client.get_experiment_by_name(experiment)
    return list(client.search_runs([known.experiment_id], **how)) if known else []


def test_a_run_is_found_with_all_that_it_says(tracking_uri: str, tmp_path: Path) -> None:
    run_id = record_run(tracking_uri, RUN)
    (run,) = found(tracking_uri)
    assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, "one", "FINISHED")
    assert run.data.params == {"rate": "0.25", "on": "true", "size": "64", "how": "plain"}
    assert run.data.metrics == {"auroc": 0.5, "bolt/auroc": 0.25, "curve/bolt/auroc": 0.25}
    assert run.data.tags["kind"] == "test"
    (artifact,) = tmp_path.glob("mlartifacts/**/record.json")
    assert artifact.read_text("utf-8") == '{"ü": 1}\n'


def test_a_series_keeps_its_steps(tracking_uri: str) -> None:
    run_id = record_run(tracking_uri, RUN)
    history = connect(tracking_uri).get_metric_history(run_id, "curve/bolt/auroc")
    assert [(point.step, point.value) for point in history] == [(1, 0.125), (4, 0.25)]


def test_runs_of_one_experiment_are_told_apart_by_what_they_say(tracking_uri: str) -> None:
    for rate in (0.5, 0.25):
        record_run(tracking_uri, replace(RUN, params={"rate": rate}, metrics={"auroc": rate}))
    assert [run.data.params["rate"] for run in found(tracking_uri, order_by=["metrics.auroc"])] == ["0.25", "0.5"]
    assert len(found(tracking_uri, filter_string="params.rate = '0.5' and metrics.auroc > 0.3")) == 1


def test_what_is_no_finite_number_is_left_out(tracking_uri: str) -> None:
    series = {"curve": [(1, math.nan), (2, 0.5)], "none": [(1, math.nan)]}
    run_id = record_run(tracking_uri, Run("things", "one", metrics={"a": math.nan, "b": math.inf}, series=series))
    assert found(tracking_uri)[0].data.metrics == {"curve": 0.5}
    assert [p.step for p in connect(tracking_uri).get_metric_history(run_id, "curve")] == [2]


def test_more_than_one_request_holds_is_recorded(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "BATCH", 2)
    many = {f"m{n}": float(n) for n in range(5)}
    record_run(tracking_uri, Run("things", "one", params=many, metrics=many, series={"s": [(1, 2.0), (2, 3.0)]}))
    (run,) = found(tracking_uri)
    assert run.data.metrics == many | {"s": 3.0}
    assert run.data.params == {name: str(value) for name, value in many.items()}


def test_long_texts_are_cut_and_show_it(tracking_uri: str) -> None:
    record_run(tracking_uri, Run("things", "n" * 300, params={"data": "d" * 7000}, tags={"t": "t" * 9000}))
    (run,) = found(tracking_uri)
    assert run.info.run_name == "n" * 249 + "…"
    assert run.data.params["data"] == "d" * 499 + "…" and run.data.tags["t"] == "t" * 499 + "…"


@pytest.mark.parametrize("name", ["a+b", "..", ".hidden", "a/b", "a\nb", "Prüfling 1", "", "x" * 300, "100%"])
def test_any_name_is_made_one_that_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import _validate_metric, _validate_param_name

    for key in (f"{legal(name)}/auroc", f"curve/{legal(name)}/auroc"):
        _validate_metric(key, 0.5, 0, 0)
        _validate_param_name(key)
    assert "/" not in legal(name)


def test_a_run_that_cannot_be_written_whole_is_a_failed_one(tracking_uri: str) -> None:
    with pytest.raises(TrackingError, match=r"could not record the run 'one'.*a\*b"):
        record_run(tracking_uri, replace(RUN, metrics={"a*b": 1.0}))
    (run,) = found(tracking_uri)
    assert run.info.status == "FAILED"


def test_artifacts_that_cannot_be_written_make_it_a_failed_one(tracking_uri: str, tmp_path: Path) -> None:
    (tmp_path / "mlartifacts").write_text("in the way of the folder")
    with pytest.raises(TrackingError, match="mlartifacts"):
        record_run(tracking_uri, RUN)
    assert [run.info.status for run in found(tracking_uri)] == ["FAILED"]


@pytest.fixture
def deleted(tracking_uri: str) -> str:
    """A store whose experiment was deleted in MLflow's pages, which keep it in a bin."""
    record_run(tracking_uri, RUN)
    client = connect(tracking_uri)
    client.delete_experiment(client.get_experiment_by_name("things").experiment_id)
    return tracking_uri


def test_a_deleted_experiment_is_named_before_and_after_the_work(deleted: str) -> None:
    for call in (lambda: prepare_tracking(deleted, "things"), lambda: record_run(deleted, RUN)):
        with pytest.raises(TrackingError, match=r"'things' was deleted.*mlflow experiments restore -x \d+"):
            call()


def test_preparing_for_an_experiment_makes_it_and_no_other(tracking_uri: str) -> None:
    prepare_tracking(tracking_uri, "things")
    names = {one.name for one in connect(tracking_uri).search_experiments()}
    assert names == {"Default", "everline", "things"}  # the second is the fixture's
    assert found(tracking_uri) == []


@pytest.mark.parametrize(("uri", "error"), [("sqlite:///none.db", TrackingError), ("./mlruns", ConfigError)])
def test_a_store_that_is_not_there_is_an_error(
    uri: str, error: type[EverlineError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        record_run(uri, RUN)
    assert not list(tmp_path.iterdir())


def test_recording_is_quiet(tracking_uri: str, capfd: pytest.CaptureFixture[str]) -> None:
    record_run(tracking_uri, RUN)
    assert capfd.readouterr() == ("", "")


CHILDREN = [
    Run("things", f"step {n}", params={"step": n}, tags={"kind": "step"}, metrics={"auroc": n / 4}) for n in (1, 2)
]


def test_children_stand_below_their_run(tracking_uri: str) -> None:
    run_id = record_run(tracking_uri, replace(RUN, children=CHILDREN))
    below = found(tracking_uri, filter_string=f"tags.`mlflow.parentRunId` = '{run_id}'", order_by=["metrics.auroc"])
    assert [run.info.run_name for run in below] == ["step 1", "step 2"]
    assert [run.data.metrics for run in below] == [{"auroc": 0.25}, {"auroc": 0.5}]
    assert below[1].data.params == {"step": "2"} and below[1].data.tags["kind"] == "step"
    assert {run.info.status for run in found(tracking_uri)} == {"FINISHED"} and len(found(tracking_uri)) == 3


def test_children_may_have_children(tracking_uri: str) -> None:
    record_run(tracking_uri, replace(RUN, children=[replace(CHILDREN[0], children=CHILDREN[1:])]))
    by_name = {run.info.run_name: run for run in found(tracking_uri)}
    assert by_name["step 2"].data.tags["mlflow.parentRunId"] == by_name["step 1"].info.run_id


def test_one_child_that_cannot_be_written_fails_them_all(tracking_uri: str) -> None:
    bad = replace(CHILDREN[1], metrics={"a*b": 1.0})
    with pytest.raises(TrackingError, match=r"could not record the run 'one'.*a\*b"):
        record_run(tracking_uri, replace(RUN, children=[CHILDREN[0], bad]))
    assert [run.info.status for run in found(tracking_uri)] == ["FAILED"] * 3


def status(uri: str, run_id: str) -> str:
    return connect(uri).get_run(run_id).info.status


def test_a_run_that_goes_on_is_running_until_it_ends(tracking_uri: str, tmp_path: Path) -> None:
    run_id = begin_run(tracking_uri, RUN)
    assert status(tracking_uri, run_id) == "RUNNING"
    end_run(tracking_uri, run_id, Run("things", "", metrics={"late": 2.0}, artifacts={"end.txt": "over"}))
    (run,) = found(tracking_uri)
    assert (run.info.run_name, run.info.status) == ("one", "FINISHED")
    assert run.data.metrics["late"] == 2.0 and run.data.metrics["auroc"] == 0.5
    assert {one.name for one in tmp_path.glob("mlartifacts/**/*.*")} == {"record.json", "end.txt"}


def test_a_run_that_was_killed_can_go_on(tracking_uri: str) -> None:
    run_id = begin_run(tracking_uri, RUN)
    end_run(tracking_uri, run_id, Run("things", "", metrics={"late": 2.0}), killed=True)
    assert status(tracking_uri, run_id) == "KILLED"
    assert resume_run(tracking_uri, run_id) and status(tracking_uri, run_id) == "RUNNING"
    end_run(tracking_uri, run_id, Run("things", "", metrics={"late": 1.0}))
    assert status(tracking_uri, run_id) == "FINISHED" and found(tracking_uri)[0].data.metrics["late"] == 1.0


def test_a_run_that_is_gone_cannot_go_on(tracking_uri: str) -> None:
    run_id = begin_run(tracking_uri, RUN)
    drop_run(tracking_uri, run_id)
    assert not resume_run(tracking_uri, run_id) and not resume_run(tracking_uri, "0" * 32)


def test_runs_are_put_below_one_that_goes_on(tracking_uri: str) -> None:
    parent = begin_run(tracking_uri, RUN)
    ids = [add_run(tracking_uri, one, parent, failed=bad) for one, bad in zip(CHILDREN, (False, True), strict=True)]
    assert [status(tracking_uri, one) for one in (parent, *ids)] == ["RUNNING", "FINISHED", "FAILED"]
    below = runs_with(tracking_uri, "things", PARENT, parent)
    assert {one.run_id for one in below} == set(ids) and all(one.whole for one in below)


def test_bytes_are_kept_as_they_are(tracking_uri: str, tmp_path: Path) -> None:
    content = bytes(range(256))
    add_run(tracking_uri, replace(RUN, artifacts={"a.png": content, "b.txt": "ü"}), begin_run(tracking_uri, RUN))
    (kept,), (text,) = (tmp_path.glob(f"mlartifacts/**/{name}") for name in ("a.png", "b.txt"))
    assert kept.read_bytes() == content and text.read_text("utf-8") == "ü"


def test_a_run_that_cannot_be_put_there_whole_is_killed(tracking_uri: str) -> None:
    parent = begin_run(tracking_uri, RUN)
    with pytest.raises(TrackingError, match=r"could not record the run 'step 1'.*a\*b"):
        add_run(tracking_uri, replace(CHILDREN[0], metrics={"a*b": 1.0}), parent)
    (one,) = runs_with(tracking_uri, "things", PARENT, parent)
    assert not one.whole and status(tracking_uri, one.run_id) == "KILLED"


def test_runs_are_found_by_a_tag_page_by_page(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "PAGE", 2)
    parent = begin_run(tracking_uri, replace(RUN, tags={"own": "a"}))
    ids = {add_run(tracking_uri, replace(CHILDREN[0], tags={"own": "b"}), parent) for _ in range(5)}
    found_ = runs_with(tracking_uri, "things", "own", "b")
    assert {one.run_id for one in found_} == ids and len(found_) == 5
    (own,) = runs_with(tracking_uri, "things", "own", "a")
    assert own.run_id == parent and not own.whole and own.tags["own"] == "a"
    drop_run(tracking_uri, min(ids))
    assert len(runs_with(tracking_uri, "things", "own", "b")) == 4


@pytest.mark.parametrize(
    "call",
    [
        lambda uri: begin_run(uri, RUN),
        lambda uri: add_run(uri, RUN, "0" * 32),
        lambda uri: end_run(uri, "0" * 32, RUN),
        lambda uri: resume_run(uri, "0" * 32),
        lambda uri: runs_with(uri, "things", "own", "a"),
        lambda uri: drop_run(uri, "0" * 32),
    ],
)
def test_every_request_to_a_store_that_is_gone_is_a_tracking_error(call: Any, tmp_path: Path) -> None:
    with pytest.raises(TrackingError):
        call(f"sqlite:///{tmp_path}/none.db")
