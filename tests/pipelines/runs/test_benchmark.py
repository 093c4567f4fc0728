"""`everline bench`: the records are those of `evaluate`, features are shared, and a stopped run goes on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from everline.methods.errors import ConfigError, DataError, TrackingError
from everline.methods.registry import METHODS, build
from everline.pipelines.data.datasets import Task
from everline.pipelines.protocols.judging import Features
from everline.pipelines.records.results import Result, read_result, write_result
from everline.pipelines.runs import benchmark
from everline.pipelines.runs.benchmark import bench
from everline.pipelines.runs.evaluate import evaluate
from everline.pipelines.runs.parts import Parts
from PIL import Image

PLAN = """
methods:
  padim: {}
  whole: {method: subspace, params: {score_rule: residual}, protocols: [online]}
protocols:
  online: {}
  two: {protocol: offline, options: {shots: 2}, seeds: 2}
"""
SMALL = ["--set", "size=64", "weights=none"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> list[Path]:
    root = tmp_path_factory.mktemp("data")
    return [write_disc(root / name, 5, 3, 3, masks=True) for name in ("disc", "bolt")]


def run(folder: Path, data: list[Path], plan: str = PLAN) -> Path:
    said(folder, data, plan)
    return folder / "out"


def said(folder: Path, data: list[Path], plan: str) -> str:
    (folder / "plan.yaml").write_text(plan)
    words = [str(folder / "plan.yaml"), "--data", *map(str, data), "--out", str(folder / "out"), *SMALL]
    ran = CliRunner().invoke(bench, words, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.output


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, data: list[Path]) -> Path:
    return run(tmp_path_factory.mktemp("bench"), data)


def test_there_is_a_record_for_each_method_and_protocol_with_all_tasks(done: Path) -> None:
    records = {str(path.relative_to(done)): read_result(path) for path in done.glob("*/*.json")}
    assert sorted(records) == ["online/padim.json", "online/whole.json", "two/padim.json"]
    assert all([task.task for task in record.tasks] == ["disc", "bolt"] for record in records.values())
    assert records["two/padim.json"].seeds == [0, 1] and records["two/padim.json"].options == {"shots": 2}


def test_the_figures_are_those_of_evaluate(done: Path, data: list[Path], tmp_path: Path) -> None:
    words = ["offline", "--method", "padim", "--shots", "2", "--seeds", "2", "--data", *map(str, data), *SMALL]
    CliRunner().invoke(evaluate, [*words, "--json", str(tmp_path / "r.json")], catch_exceptions=False)
    one, other = read_result(tmp_path / "r.json"), read_result(done / "two/padim.json")
    assert replace(one, tasks=[]) == replace(other, tasks=[])
    for mine, theirs in zip(one.tasks, other.tasks, strict=True):
        assert (mine.metrics, mine.curve, mine.runs) == (theirs.metrics, theirs.curve, theirs.runs)


def test_an_image_is_embedded_once_for_all(tmp_path: Path, data: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = []
    real = Features.get

    def counted(self: Features, *given: object, **more: object) -> object:
        before = self._calls
        out = real(self, *given, **more)  # type: ignore[arg-type]
        embedded.extend([given[0]] * (self._calls - before))
        return out

    monkeypatch.setattr(Features, "get", counted)
    run(tmp_path, data[:1])
    assert len(embedded) == len(set(embedded)) == 5 + 3 + 3


def test_a_stopped_run_goes_on_and_makes_anew_what_is_not_its_own(
    done: Path, data: list[Path], tmp_path: Path
) -> None:
    done = Path(shutil.copytree(done, tmp_path / "out"))
    kept, other, torn = (
        done / part for part in ("online/whole/disc.json", "online/padim/disc.json", "two/padim/bolt.json")
    )
    (done / "online/whole/bolt.json").unlink()
    before, record = kept.stat().st_mtime_ns, read_result(other)
    write_result(replace(record, params={**record.params, "sigma": 1.0}), other)
    torn.write_text("{")
    run(tmp_path, data)
    assert kept.stat().st_mtime_ns == before
    assert (done / "online/whole/bolt.json").is_file() and read_result(torn).method == "padim"
    assert read_result(other).params == record.params
    assert json.loads((done / "online/padim.json").read_text())["tasks"][0]["task"] == "disc"


def test_no_name_of_a_task_leads_out_of_the_folder(tmp_path: Path) -> None:
    for name in ("../../up", "/etc/up", "a/b"):
        file = Parts(tmp_path).part(("online", "padim"), Task(name, (), ()))
        assert file.resolve().parent == tmp_path / "online/padim"


TWO = "methods: {padim: {}, subspace: {}}\nprotocols: {online: {}}"


def tracked(uri: str) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name("everline/online")
    return sorted(run.data.params["method"] for run in client.search_runs([found.experiment_id]))


def test_every_record_is_one_run_in_mlflow_however_often_it_is_gone_on(
    data: list[Path], tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, data[:1], TWO)  # without a store
    monkeypatch.setenv("EVERLINE_TRACKING", tracking_uri)
    real = benchmark.track

    def failing(result: Result, uri: str) -> str:
        if result.method == "subspace":
            raise TrackingError("the store is gone")
        return real(result, uri)

    monkeypatch.setattr(benchmark, "track", failing)
    with pytest.raises(TrackingError, match="is gone"):
        run(tmp_path, data[:1], TWO)
    monkeypatch.setattr(benchmark, "track", real)
    for _ in range(2):
        run(tmp_path, data[:1], TWO)
        assert tracked(tracking_uri) == ["padim", "subspace"]
    (tmp_path / "out/online/padim/disc.json").unlink()  # another measurement is another run
    run(tmp_path, data[:1], TWO)
    assert tracked(tracking_uri) == ["padim", "padim", "subspace"]


def test_other_images_of_the_same_name_are_not_mixed_in(tmp_path: Path, data: list[Path]) -> None:
    run(tmp_path, data[:1], TWO)
    other = Path(shutil.copytree(data[0], tmp_path / "elsewhere" / "disc"))
    run(tmp_path, [other], TWO)  # the same images at another place
    Image.open(other / "test/good/000.png").transpose(Image.Transpose.ROTATE_90).save(other / "test/good/000.png")
    with pytest.raises(DataError, match="made from other images of the name disc"):
        run(tmp_path, [other], TWO)


def test_parts_of_unknown_images_are_not_trusted(tmp_path: Path, data: list[Path]) -> None:
    shutil.rmtree(run(tmp_path, data[:1], TWO) / "data")
    with pytest.raises(DataError, match="made from other images of the name disc"):
        run(tmp_path, data[:1], TWO)


def test_what_cannot_be_written_at_the_end_is_said_at_the_start(
    tmp_path: Path, data: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.md").write_text("no marks")
    (tmp_path / "plan.yaml").write_text(PLAN)
    monkeypatch.setattr(benchmark, "run_plan", lambda *given: pytest.fail("it went to work"))
    words = [tmp_path / "plan.yaml", "--data", *data, "--out", tmp_path / "out", "--markdown", tmp_path / "page.md"]
    with pytest.raises(ConfigError, match="has no place"):
        CliRunner().invoke(bench, list(map(str, words)), catch_exceptions=False)


def test_it_says_why_figures_are_left_out(tmp_path: Path, write_disc: Callable[..., Path]) -> None:
    bare = write_disc(tmp_path / "[bare]", 3, 2, 2)  # a name that looks like markup
    assert "[bare]: no masks: pixel figures are left out." in said(tmp_path, [bare], TWO)


@pytest.mark.parametrize("name", sorted(n for n, one in METHODS.items() if not one.traits.end_to_end))
def test_detectors_share_features_only_of_one_size_and_backbone(name: str) -> None:
    small = {"size": 64, "weights": "none"}
    assert build(name, **small).embedding == build(name, **small, seed=3).embedding
    assert build(name, **small).embedding != build(name, size=96, weights="none").embedding
    assert build(name, **small).embedding != build(name, **small, strides=[8]).embedding


def test_methods_that_learn_from_images_share_them_where_they_are_of_one_size() -> None:
    names = [name for name, one in METHODS.items() if one.traits.end_to_end]
    assert len({build(name, size=64, seed=seed).embedding for name in names for seed in (0, 3)}) == 1
    assert len({build(name, size=size).embedding for name in names for size in (64, 96)}) == 2
    assert build(names[0], size=64).embedding != build("padim", size=64).embedding
