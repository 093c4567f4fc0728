"""A sweep in MLflow: found and compared by MLflow alone, no trial twice whatever breaks, and no error that ends it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from everline.methods.errors import ConfigError, StoreError, TrackingError
from everline.pipelines.records.continued import Continued
from everline.pipelines.records.results import Result, read_result
from everline.pipelines.sweeps import tracked as module
from everline.pipelines.sweeps.record import Item, TrialRecord
from everline.pipelines.sweeps.tracked import FILE, Tracked, store_of
from everline.pipelines.sweeps.tracked_runs import of_trial_run
from everline.platform.pictures import png
from everline.platform.settings import default_tracking

Made = Callable[..., Any]
PICTURE = png(np.zeros((4, 4, 3), np.uint8))


def found(uri: str, **how: Any) -> list[Any]:
    """The runs of all sweeps under online, as MLflow alone finds them."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    known = client.get_experiment_by_name("everline/sweep/online")
    return list(client.search_runs([known.experiment_id], **how)) if known else []


def of_kind(uri: str, kind: str) -> list[Any]:
    return found(uri, filter_string=f"tags.`everline.kind` = '{kind}'", order_by=["tags.configuration"])


@pytest.fixture
def begun(tracking_uri: str, tmp_path: Path, asked: Made) -> Tracked:
    """A sweep that is being tracked."""
    kept = Tracked(tmp_path / "out", tracking_uri, asked(memory=(100, 300), given={"sigma": 2.0}))
    kept.begin()
    return kept


def again(kept: Tracked) -> Tracked:
    """The same sweep in another process."""
    return Tracked(kept.out, kept.uri, kept.settings)


def test_a_sweep_begins_as_a_running_one_with_all_that_was_asked(begun: Tracked) -> None:
    (run,) = found(begun.uri)
    assert (run.info.run_id, run.info.status) == (begun.parent, "RUNNING")
    wanted = {"methods": "coreset,padim", "memory": "100,300", "objective": "auroc", "given/sigma": "2.0"}
    assert (wanted | {"data": "bolt", "samples": "1", "holdout": "0.5"}).items() <= run.data.params.items()
    assert run.data.tags["everline.kind"] == "sweep"
    assert begun.parent in begun.landed and "everline/sweep/online" in begun.landed


def test_trials_compare_by_parameters_and_figures_under_plain_names(begun: Tracked, trial: Made) -> None:
    for n, slack in enumerate((0.5, 0.125)):
        begun.add(trial(n, n, 0.5 + n / 4, memory=100, params={"slack": slack}, ms=8.0))
    where = f"tags.`mlflow.parentRunId` = '{begun.parent}' and metrics.objective > 0.1"
    runs = found(begun.uri, filter_string=where, order_by=["metrics.objective DESC"])
    assert [run.data.params["slack"] for run in runs] == ["0.125", "0.5"]
    assert {run.data.params["memory"] for run in runs} == {"100"} and runs[0].data.params["method"] == "coreset"
    figures = {"objective": 0.75, "image_auroc": 0.75, "state_bytes": 1e6, "ms_per_image": 8.0, "seconds": 1.5}
    assert figures.items() <= runs[0].data.metrics.items()
    tags = {"status": "complete", "configuration": "1", "task": "bolt", "phase": "search", "everline.kind": "trial"}
    assert (tags | {"everline.trial": f"{1:064x}"}).items() <= runs[0].data.tags.items()
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_trial_holds_record_curve_and_heatmaps(begun: Tracked, trial: Made, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    one = trial(0, 0, 0.5)
    begun.add(one, PICTURE)
    (run,) = of_kind(begun.uri, "trial")
    history = MlflowClient(begun.uri).get_metric_history(run.info.run_id, "curve/bolt/image_auroc")
    assert [(point.step, point.value) for point in history] == [(1, 0.4), (2, 0.45), (4, 0.475)]
    files = {file.name: file for file in tmp_path.glob(f"mlartifacts/**/{run.info.run_id}/**/*.*")}
    assert sorted(files) == ["curve.svg", "heatmaps.png", "result.json"]
    assert files["heatmaps.png"].read_bytes() == PICTURE
    assert read_result(files["result.json"]).to_json() == one.result.to_json()


def test_a_failed_trial_is_a_failed_run_with_its_error(begun: Tracked, trial: Made, tmp_path: Path) -> None:
    begun.add(trial(0, 0, status="failed", memory=100, params={"slack": 0.5}, error="out of luck"))
    (run,) = of_kind(begun.uri, "trial")
    assert run.info.status == "FAILED" and run.data.tags["error"] == "out of luck"
    assert {"slack": "0.5", "memory": "100", "sigma": "2.0", "data": "bolt"}.items() <= run.data.params.items()
    assert "objective" not in run.data.metrics and "image_auroc" not in run.data.metrics
    (file,) = tmp_path.glob("mlartifacts/**/error.txt")
    assert file.read_text("utf-8") == "out of luck\n"
    again(begun).catch_up([trial(0, 0, status="failed")])
    assert len(of_kind(begun.uri, "trial")) == 1


def test_a_stopped_trial_has_its_curve_and_no_figures_that_would_not_compare(begun: Tracked, trial: Made) -> None:
    begun.add(trial(0, 0, status="stopped"))
    (run,) = of_kind(begun.uri, "trial")
    assert run.info.status == "FINISHED" and run.data.tags["status"] == "stopped"
    assert run.data.metrics.keys() >= {"curve/bolt/image_auroc"} and "image_auroc" not in run.data.metrics


def test_a_judgement_on_held_out_images_is_told_apart(begun: Tracked, trial: Made) -> None:
    begun.add(trial(0, 0))
    begun.add(trial(1, 0, phase="held-out"))
    assert sorted(run.data.tags["phase"] for run in of_kind(begun.uri, "trial")) == ["held-out", "search"]


def test_the_end_adds_the_best_and_the_page(begun: Tracked, trial: Made, outcome: Made, tmp_path: Path) -> None:
    records = [trial(0, 0, 0.5), trial(1, 1, 0.75), trial(2, 1, 0.625, phase="held-out")]
    made = outcome(*records)
    begun.end(made, "<!doctype html>", finished=True)
    (run,) = of_kind(begun.uri, "sweep")
    wanted = {"objective": 0.75, "image_auroc": 0.75, "held_out/image_auroc": 0.625, "state_bytes": 1e6, "trials": 2}
    assert run.info.status == "FINISHED" and wanted.items() <= run.data.metrics.items()
    files = {file.name: file.read_text("utf-8") for file in tmp_path.glob("mlartifacts/**/*.*")}
    assert json.loads(files["outcome.json"]) == made.to_json() and files["report.html"] == "<!doctype html>"


def test_a_sweep_that_was_interrupted_goes_on_in_its_run(begun: Tracked, trial: Made, outcome: Made) -> None:
    one, two = trial(0, 0, 0.5), trial(1, 1, 0.75)
    begun.add(one)
    begun.end(outcome(one, finished=False), "", finished=False)
    assert of_kind(begun.uri, "sweep")[0].info.status == "KILLED"
    other = again(begun)
    other.begin()
    assert other.parent == begun.parent and of_kind(begun.uri, "sweep")[0].info.status == "RUNNING"
    other.catch_up([one, two])
    other.end(outcome(one, two), "", finished=True)
    (run,) = of_kind(begun.uri, "sweep")
    assert run.info.status == "FINISHED" and run.data.metrics["objective"] == 0.75
    assert [one.data.tags["configuration"] for one in of_kind(begun.uri, "trial")] == ["0", "1"]


def test_adding_without_a_beginning_begins(tracking_uri: str, tmp_path: Path, asked: Made, trial: Made) -> None:
    Tracked(tmp_path / "out", tracking_uri, asked()).add(trial(0, 0))
    assert len(of_kind(tracking_uri, "sweep")) == len(of_kind(tracking_uri, "trial")) == 1


def test_a_trial_whose_answer_was_lost_is_not_recorded_twice(
    begun: Tracked, trial: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*given: Any, add_run: Callable[..., Any] = module.add_run, **more: Any) -> str:
        add_run(*given, **more)
        raise TrackingError("the answer was lost")

    with monkeypatch.context() as patched:
        patched.setattr(module, "add_run", lost)
        with pytest.raises(TrackingError):
            begun.add(trial(0, 0))
    for kept in (begun, again(begun)):
        kept.catch_up([trial(0, 0), trial(1, 1)])
    assert len(of_kind(begun.uri, "trial")) == 2


def test_a_trial_that_is_there_in_part_is_recorded_anew(
    begun: Tracked, trial: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*given: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.log_artifacts", killed)
        with pytest.raises(KeyboardInterrupt):
            begun.add(trial(0, 0))
    again(begun).catch_up([trial(0, 0)])
    (run,) = of_kind(begun.uri, "trial")
    assert run.info.status == "FINISHED"


def test_a_sweep_that_died_before_its_note_leaves_one_run(
    tracking_uri: str, tmp_path: Path, asked: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(*given: Any, begin_run: Callable[..., Any] = module.begin_run) -> str:
        begin_run(*given)
        raise KeyboardInterrupt

    kept = Tracked(tmp_path / "out", tracking_uri, asked())
    with monkeypatch.context() as patched:
        patched.setattr(module, "begin_run", died)
        with pytest.raises(KeyboardInterrupt):
            kept.begin()
    other = again(kept)
    other.begin()
    assert [run.info.run_id for run in of_kind(tracking_uri, "sweep")] == [other.parent]


def test_another_store_has_a_sweep_of_its_own_and_the_first_is_found_again(
    begun: Tracked, trial: Made, tmp_path: Path
) -> None:
    begun.add(trial(0, 0))
    other = Tracked(begun.out, f"{begun.uri}?timeout=30", begun.settings)  # another address is another store
    other.catch_up([trial(0, 0)])
    assert other.parent != begun.parent and len(of_kind(begun.uri, "sweep")) == 2
    back = again(begun)
    back.begin()
    assert back.parent == begun.parent
    assert "sqlite" not in (begun.out / FILE).read_text("utf-8")  # an address may hold a password


def test_what_is_resumed_in_another_folder_goes_on_in_its_own_store(begun: Tracked, tmp_path: Path) -> None:
    elsewhere = default_tracking(tmp_path / "elsewhere" / "everline-data")
    assert store_of(begun.out, begun.uri) == begun.uri
    assert store_of(begun.out, elsewhere) == begun.uri
    assert store_of(tmp_path / "not tracked", elsewhere) == elsewhere
    (tmp_path / "mlflow.db").rename(tmp_path / "moved.db")
    with pytest.raises(ConfigError, match=r"it was .*mlflow\.db\); name it with --tracking"):
        store_of(begun.out, elsewhere)


def test_a_store_whose_address_is_not_noted_has_to_be_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"0" * 64: {"sweep": "a", "parent": "b"}}))
    with pytest.raises(ConfigError, match="the sweep is in another MLflow store than"):
        store_of(tmp_path, "sqlite:////here/mlflow.db")


def test_two_sweeps_of_the_same_settings_are_two(begun: Tracked, tmp_path: Path) -> None:
    Tracked(tmp_path / "elsewhere_out", begun.uri, begun.settings).begin()
    assert len(of_kind(begun.uri, "sweep")) == 2


def test_a_sweep_that_was_deleted_in_mlflow_is_recorded_anew(begun: Tracked, trial: Made) -> None:
    from mlflow import MlflowClient

    begun.add(trial(0, 0))
    client = MlflowClient(begun.uri)
    for run in found(begun.uri):
        client.delete_run(run.info.run_id)
    again(begun).catch_up([trial(0, 0)])
    assert len(of_kind(begun.uri, "sweep")) == len(of_kind(begun.uri, "trial")) == 1


def test_one_record_that_the_store_will_not_take_does_not_keep_the_others_out(
    begun: Tracked, trial: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(uri: str, run: Any, parent: str, failed: bool, add_run: Callable[..., Any] = module.add_run) -> str:
        if run.tags["configuration"] == "0":
            raise TrackingError("not this one")
        return add_run(uri, run, parent, failed)

    monkeypatch.setattr(module, "add_run", picky)
    with pytest.raises(TrackingError, match="not this one"):
        begun.catch_up([trial(0, 0), trial(1, 1)])
    assert [run.data.tags["configuration"] for run in of_kind(begun.uri, "trial")] == ["1"]


def test_a_store_that_is_gone_is_not_asked_for_every_trial(
    begun: Tracked, trial: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def gone(*given: Any, **more: Any) -> str:
        asked.append(given)
        raise TrackingError("gone")

    monkeypatch.setattr(module, "add_run", gone)
    with pytest.raises(TrackingError, match="gone"):
        begun.catch_up([trial(n, n) for n in range(50)])
    assert len(asked) == module.MOST_ERRORS


def test_a_full_disk_is_a_tracking_error_too(begun: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(module.Tracked, "_note", full)
    with pytest.raises(TrackingError, match="the disk is full"):
        again(begun).begin()


@pytest.mark.parametrize("text", ["[]", "{", '{"STORE": 3}', '{"STORE": {"sweep": "a\' or", "parent": ""}}'])
def test_a_note_that_is_none_is_refused(begun: Tracked, text: str) -> None:
    (begun.out / FILE).write_text(text.replace("STORE", begun._store), "utf-8")
    with pytest.raises(TrackingError, match=FILE):
        again(begun).begin()


def test_heatmaps_beside_the_trials_are_caught_up_with(begun: Tracked, trial: Made, tmp_path: Path) -> None:
    one = trial(0, 0)
    (begun.out / "trials").mkdir()
    (begun.out / "trials" / f"{one.stem}.png").write_bytes(PICTURE)
    begun.catch_up([one])
    (file,) = tmp_path.glob("mlartifacts/**/heatmaps.png")
    assert file.read_bytes() == PICTURE


def test_a_sequence_is_one_run_with_its_trend(
    asked: Made, sequence: Callable[..., Continued], record: Callable[..., Result]
) -> None:
    one = TrialRecord(Item(0, 0, "padim", None, {}, ""), "0" * 64, "complete", 0.5, record(sequence()))
    run = of_trial_run(asked(protocol="continual", images=dict.fromkeys("abc", "1")), one, None)
    assert run.experiment == "everline/sweep/continual" and not run.children
    assert run.metrics["image_auroc"] == pytest.approx(1.6 / 3) and run.tags["task"] == "all"
    assert len(run.series["continual/trend/image_auroc"]) == 3 and run.metrics["state_bytes"] == 6_000_000


def test_tracking_is_quiet(begun: Tracked, trial: Made, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    begun.add(trial(0, 0), PICTURE)
    assert capfd.readouterr() == ("", "")
