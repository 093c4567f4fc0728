"""`everline bench`: the records are those of `evaluate`, features are shared, and a stopped run goes on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from everline.methods.errors import DataError
from everline.methods.registry import METHODS, build
from everline.pipelines import benchmark
from everline.pipelines.bench import Features
from everline.pipelines.benchmark import bench, part_file
from everline.pipelines.datasets import Task
from everline.pipelines.evaluate import evaluate
from everline.pipelines.results import read_result, write_result

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
    (folder / "plan.yaml").write_text(plan)
    out = folder / "out"
    words = [str(folder / "plan.yaml"), "--data", *map(str, data), "--out", str(out), *SMALL]
    ran = CliRunner().invoke(bench, words, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return out


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


def test_a_stopped_run_goes_on_and_makes_anew_what_is_not_its_own(done: Path, data: list[Path]) -> None:
    kept, other, torn = (
        done / part for part in ("online/whole/disc.json", "online/padim/disc.json", "two/padim/bolt.json")
    )
    (done / "online/whole/bolt.json").unlink()
    before, record = kept.stat().st_mtime_ns, read_result(other)
    write_result(replace(record, params={**record.params, "sigma": 1.0}), other)
    torn.write_text("{")
    run(done.parent, data)
    assert kept.stat().st_mtime_ns == before
    assert (done / "online/whole/bolt.json").is_file() and read_result(torn).method == "padim"
    assert read_result(other).params == record.params
    assert json.loads((done / "online/padim.json").read_text())["tasks"][0]["task"] == "disc"


def test_no_name_of_a_task_leads_out_of_the_folder(tmp_path: Path) -> None:
    for name in ("../../up", "/etc/up", "a/b"):
        file = part_file(tmp_path, "online", "padim", Task(name, (), ()))
        assert file.resolve().parent == tmp_path / "online/padim"


def test_the_records_are_runs_in_mlflow_and_only_new_ones(
    data: list[Path], tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setenv("EVERLINE_TRACKING", tracking_uri)
    monkeypatch.setattr(benchmark, "track", lambda result, uri: found.append((result.method, uri)))
    plan = "methods: {padim: {}, subspace: {}}\nprotocols: {online: {}}"
    run(tmp_path, data[:1], plan)
    assert found == [("padim", tracking_uri), ("subspace", tracking_uri)]
    (tmp_path / "out/online/padim/disc.json").unlink()
    run(tmp_path, data[:1], plan)
    assert found[2:] == [("padim", tracking_uri)]


def test_other_images_of_the_same_name_are_not_mixed_in(
    tmp_path: Path, data: list[Path], write_disc: Callable[..., Path]
) -> None:
    plan = "methods: {subspace: {}}\nprotocols: {online: {}}"
    run(tmp_path, data[:1], plan)
    moved = Path(shutil.copytree(data[0], tmp_path / "elsewhere" / data[0].name))
    run(tmp_path, [moved], plan)
    other = write_disc(tmp_path / "other" / data[0].name, 6, 3, 3)
    with pytest.raises(DataError, match="made from other images of the name disc"):
        run(tmp_path, [other], plan)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_detectors_share_features_only_of_one_size_and_backbone(name: str) -> None:
    small = {"size": 64, "weights": "none"}
    assert build(name, **small).embedding == build(name, **small, seed=3).embedding
    assert build(name, **small).embedding != build(name, size=96, weights="none").embedding
    assert build(name, **small).embedding != build(name, **small, strides=[8]).embedding
