"""Results in MLflow: what an evaluation leaves there, for MLflow alone to find and compare, and when it does not."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from everline.methods.errors import ConfigError, TrackingError
from everline.pipelines.main import main
from everline.pipelines.records.continued import Continued, pooled_runs
from everline.pipelines.records.results import METRICS, Part, Result, SeedRun, TaskResult, read_result
from everline.pipelines.runs import evaluate as module
from everline.pipelines.runs.evaluate import evaluate
from everline.pipelines.runs.tracked import labelled, landed, prepare, title, to_run, track, tracking_option
from everline.platform.settings import parse_fleet

SMALL = ["--method", "subspace", "--size", "64", "--set", "weights=none"]


@pytest.fixture(scope="module")
def disc(write_disc: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images to learn, seven to judge, without masks."""
    return write_disc(tmp_path_factory.mktemp("data") / "disc", 6, 3, 4)


def call(*words: object) -> Any:
    return CliRunner().invoke(evaluate, [str(word) for word in words])


def found(uri: str, protocol: str = "online", **how: Any) -> list[Any]:
    """The runs of a protocol, as MLflow alone finds them."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    known = client.get_experiment_by_name(f"everline/{protocol}")
    return list(client.search_runs([known.experiment_id], **how)) if known else []


def task(name: str, value: float = 0.5, **more: Any) -> TaskResult:
    figures = dict.fromkeys(METRICS, value)
    curve = [{"images": 1, **figures}, {"images": 4, **figures}]
    return TaskResult(name, 4, 6, figures, curve, {"backbone": 10.0, "score": 6.0, "learn": 4.0}, 2_000_000, **more)


def result(*tasks: TaskResult, **changed: Any) -> Result:
    plain: dict[str, Any] = {"protocol": "online", "method": "subspace", "backbone": "b", "size": 64, "seed": 3}
    params = {"size": 64, "seed": 3, "sigma": 4.0, "strides": [4, 8, 16], "bias": None}
    return Result(tasks=tasks, **({**plain, "params": params} | changed))


def test_two_evaluations_are_two_runs_that_mlflow_compares(tracking_uri: str, disc: Path) -> None:
    for sigma in (1, 2):
        ran = call("online", "--data", disc, *SMALL, f"sigma={sigma}", "--tracking", tracking_uri)
        assert ran.exit_code == 0, ran.output
    runs = found(tracking_uri, filter_string="metrics.image_auroc >= 0", order_by=["params.sigma DESC"])
    assert [run.data.params["sigma"] for run in runs] == ["2.0", "1.0"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    same = {"method": "subspace", "data": "disc", "size": "64", "seed": "0", "backbone": "efficientnet_lite0"}
    assert all(same.items() <= run.data.params.items() for run in runs)
    assert runs[0].data.tags["everline.kind"] == "evaluation"
    assert runs[0].info.run_name == "subspace on disc size=64 weights=none sigma=2.0"


def test_a_run_holds_the_record_its_figures_and_its_curve(tracking_uri: str, disc: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    ran = call("online", "--data", disc, *SMALL, "--json", tmp_path / "r.json", "--tracking", tracking_uri)
    assert ran.exit_code == 0, ran.output
    (run,), (kept,) = found(tracking_uri), tmp_path.glob("mlartifacts/**/result.json")
    record = read_result(tmp_path / "r.json")
    assert read_result(kept) == record
    assert run.data.metrics["disc/image_auroc"] == record.tasks[0].metrics["image_auroc"]
    assert run.data.metrics["images_per_s"] == record.tasks[0].images_per_s
    history = MlflowClient(tracking_uri).get_metric_history(run.info.run_id, "curve/disc/image_auroc")
    curve = [(point["images"], point["image_auroc"]) for point in record.tasks[0].curve]
    assert [(point.step, point.value) for point in history] == curve and len(curve) == 4


def test_figures_that_do_not_exist_are_left_out(tracking_uri: str, disc: Path) -> None:
    assert call("offline", "--shots", 2, "--data", disc, *SMALL, "--tracking", tracking_uri).exit_code == 0
    (run,) = found(tracking_uri, "offline")
    assert "image_auroc" in run.data.metrics and run.data.params["protocol/shots"] == "2"
    assert not [name for name in run.data.metrics if "aupro" in name]  # there are no masks
    assert not [name for name in run.data.metrics if name.startswith("curve/")]  # one judgement is no curve


def test_standard_output_is_json_alone_and_the_run_is_named_elsewhere(tracking_uri: str, disc: Path) -> None:
    ran = call("offline", "--data", disc, *SMALL, "--json", "-", "--tracking", tracking_uri)
    assert json.loads(ran.stdout)["method"] == "subspace"
    (run,) = found(tracking_uri, "offline")
    last = ran.stderr.splitlines()[-1]
    assert last == (
        f"MLflow: run {run.info.run_id} of experiment everline/offline; "
        f"to see it: mlflow ui --backend-store-uri {tracking_uri}"
    )


def test_all_that_a_record_may_have_has_a_name() -> None:
    low, high = (dict.fromkeys(METRICS, value) for value in (0.25, 0.75))
    more: dict[str, Any] = {"deviation": low, "parts": [Part("noise", high, low), Part("none", low)]}
    more["admitted"] = {"normal": 0.75, "defective": 0.25}
    tasks = [
        task(name, value, offline=low, runs=[SeedRun(3, low), SeedRun(4, high)], **more)
        for name, value in (("a", 0.25), ("b", 0.75))
    ]
    run = to_run(result(*tasks, seeds=[3, 4], options={"drift": {"noise": 25.0}}))
    names = {name.rsplit("/", 1)[0]: value for name, value in run.metrics.items() if name.endswith("/pixel_f1")}
    assert run.metrics["admitted/normal"] == run.metrics["b/admitted/normal"] == 0.75
    assert run.metrics["pixel_f1"] == 0.5 and run.metrics["ms_per_image/score"] == 6.0
    assert names == {"offline": 0.25, "deviation": pytest.approx(0.5 / 2**0.5)} | {
        "part/noise": 0.75, "part/noise/offline": 0.25, "part/none": 0.25,
        "a": 0.25, "a/offline": 0.25, "a/deviation": 0.25, "b": 0.75, "b/offline": 0.25, "b/deviation": 0.25,
    }  # fmt: skip
    assert run.params == {"method": "subspace", "data": "a, b", "backbone": "b", "size": 64, "sigma": 4.0} | {
        "seed": 3, "seeds": "3,4", "strides": "4,8,16", "protocol/drift/noise": 25.0
    }  # fmt: skip
    assert run.series["curve/b/aupro"] == [(1, 0.75), (4, 0.75)]


def test_a_mean_that_a_task_spoils_is_none() -> None:
    run = to_run(result(task("a"), task("b", math.nan)))
    assert math.isnan(run.metrics["aupro"]) and run.metrics["a/aupro"] == 0.5


def test_tasks_of_different_names_stay_apart() -> None:
    assert labelled(["a+b", "a-b", "a_b", "offline", "curve"]) == ["a_b", "a-b", "a_b_", "offline_", "curve_"]


def test_a_runs_name_says_what_is_not_as_usual() -> None:
    assert title(result(task("bolt"))) == "subspace on bolt size=64 seed=3"
    params = {"size": 224, "seed": 0, "sigma": 2.0, "strides": [4, 8, 16]}
    options = {"shots": 10, "ratio": 7.7, "session": 50, "batch": 10}
    many = result(task("a"), task("b"), protocol="fewshot", params=params, options=options, seeds=[0, 1, 2])
    assert title(many) == "subspace on 2 tasks sigma=2.0 session=50 seeds=0..2"


def test_a_method_of_elsewhere_is_named_with_all_it_says() -> None:
    assert title(result(task("a"), method="else", params={"x": 1}, protocol="own")) == "else on a x=1"


@pytest.mark.parametrize(("uri", "error"), [("./mlruns", ConfigError), ("sqlite:////dev/null/x.db", TrackingError)])
def test_a_store_that_cannot_be_is_found_out_before_the_work(
    uri: str, error: type[Exception], disc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "run", lambda *_: pytest.fail("the work began"))
    ran = call("online", "--data", disc, *SMALL, "--json", tmp_path / "r.json", "--tracking", uri)
    assert isinstance(ran.exception, error)
    assert not list(tmp_path.iterdir())


def test_a_store_that_goes_away_leaves_record_and_table(
    tracking_uri: str,
    disc: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(*given: Any, work: Callable[..., Any] = module.run) -> Any:
        done = work(*given)
        Path(tracking_uri.removeprefix("sqlite:///")).unlink()
        return done

    monkeypatch.setattr(module, "run", work)
    words = ["evaluate", "online", "--data", disc, *SMALL, "--json", tmp_path / "r.json", "--tracking", tracking_uri]
    monkeypatch.setattr(sys, "argv", ["everline", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 1 and "no such database" in said.err.splitlines()[-1]
    assert "disc" in said.out and read_result(tmp_path / "r.json").tasks[0].task == "disc"


@click.command()
@tracking_option
def address(tracking: str | None) -> None:
    """Says what the option came to."""
    click.echo(str(tracking))


def test_where_results_go_is_a_fleets_default_unless_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def told(*words: str, variable: str = "") -> str:
        return CliRunner().invoke(address, words, env={"EVERLINE_TRACKING": variable}).output.strip()

    assert told() == parse_fleet({"lines": {"a": {}}}, tmp_path).tracking
    assert told(variable="none") == told("--tracking", "none", variable="sqlite:///x.db") == "None"
    assert told(variable="sqlite:///x.db") == told("--tracking", "sqlite:///x.db") == f"sqlite:///{tmp_path}/x.db"
    assert told("--tracking", "sqlite:///:memory:") == "sqlite:///:memory:"  # no file of that name; refused later


def test_a_server_is_named_without_its_password() -> None:
    said = landed(result(task("a")), "https://me:secret@host:5000", "abc")
    assert said == "MLflow: run abc of experiment everline/online; to see it: https://***@host:5000"


def test_help_does_not_wait_for_mlflow() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from everline.pipelines.main import cli; "
        "print(CliRunner().invoke(cli, ['evaluate', '--help']).output); assert 'mlflow' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "--tracking" in ran.stdout and "EVERLINE_TRACKING" in ran.stdout


def test_a_sequence_has_its_measures_and_a_run_for_each_step(
    tracking_uri: str, sequence: Callable[..., Continued], record: Callable[..., Result]
) -> None:
    from mlflow import MlflowClient

    prepare(tracking_uri, "continual")
    run_id = track(record(sequence()), tracking_uri)
    runs = {run.info.run_name: run for run in found(tracking_uri, "continual")}
    whole = runs.pop("padim on 3 tasks size=64")
    assert whole.info.run_id == run_id and sorted(runs) == ["step 1: a", "step 2: b", "step 3: c"]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {run_id}
    assert runs["step 2: b"].data.metrics["b/aupro"] == 0.6
    assert runs["step 2: b"].data.metrics["aupro"] == pytest.approx(0.75)
    assert whole.data.metrics["continual/aupro/forgetting"] == pytest.approx(0.3)
    history = MlflowClient(tracking_uri).get_metric_history(run_id, "continual/trend/aupro")
    assert [(point.step, point.value) for point in history] == [
        (1, pytest.approx(0.8)), (2, pytest.approx(0.75)), (3, pytest.approx(1.6 / 3))
    ]  # fmt: skip


def test_steps_are_told_apart_from_whole_runs(
    sequence: Callable[..., Continued], record: Callable[..., Result]
) -> None:
    run = to_run(record(sequence(), "replay", {"memory": 300}))
    assert run.tags["everline.kind"] == "evaluation"
    assert {child.tags["everline.kind"] for child in run.children} == {"step"}
    assert [child.params["step"] for child in run.children] == [1, 2, 3]
    assert all(run.params.items() <= child.params.items() for child in run.children)
    costs = {name: run.metrics[f"continual/{name}"] for name in ("training_s", "memory_bytes/replay")}
    assert costs == {"training_s": 12.5, "memory_bytes/replay": 1_000_000}


def test_seeds_of_a_sequence_have_their_deviation(
    sequence: Callable[..., Continued], record: Callable[..., Result]
) -> None:
    two = pooled_runs([sequence(), sequence([[0.5] * 3] * 3, seed=1)])
    run = to_run(record(two, seeds=[0, 1]))
    assert run.metrics["continual/deviation/aupro/forgetting"] == pytest.approx(0.3 / 2**0.5)
    assert run.children[1].metrics["b/aupro"] == pytest.approx(0.55)


def test_steps_in_several_orders_are_numbered(
    sequence: Callable[..., Continued], record: Callable[..., Result]
) -> None:
    run = to_run(record(pooled_runs([sequence(), sequence(names="cab", seed=1)]), seeds=[0, 1]))
    assert [child.name for child in run.children] == ["step 1", "step 2", "step 3"]
    assert run.children[0].metrics["1./aupro"] == 0.8 and "learned" not in run.children[0].params


def test_what_a_sequence_leaves_open_is_no_number(
    sequence: Callable[..., Continued], record: Callable[..., Result]
) -> None:
    run = to_run(record(sequence()))
    assert math.isnan(run.metrics["continual/aupro/relative_gap"]) and math.isnan(run.metrics["continual/task_found"])
    assert not [name for name, _, _ in run.points() if name.endswith(("relative_gap", "task_found"))]
