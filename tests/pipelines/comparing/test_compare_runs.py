"""`everline compare` of MLflow runs and of records with several seeds: what is read, refused, said and written."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from click.testing import Result as Ran
from everline.methods.errors import ConfigError, DataError, EverlineError
from everline.pipelines.comparing import sources
from everline.pipelines.comparing.compare import compare
from everline.pipelines.comparing.comparison import Comparison
from everline.pipelines.comparing.paired import cells, paired
from everline.pipelines.comparing.sources import Source
from everline.pipelines.records.continued import Continued, pooled_runs
from everline.pipelines.records.results import METRICS, Result, SeedRun, TaskResult, write_result
from everline.pipelines.runs.tracked import prepare, track
from everline.platform.runs import Run, record_run
from scipy.stats import ttest_rel

TIMES = {"backbone": 10.0, "score": 1.5, "learn": 0.75}
ONE = {"bolt": [0.50, 0.60, 0.70], "nut": [0.90, 0.80, 0.95]}
TWO = {"bolt": [0.55, 0.62, 0.79], "nut": [0.91, 0.85, 0.93]}
THREE = {"bolt": [0.40, 0.41, 0.45], "nut": [0.70, 0.72, 0.74]}


def result(method: str = "padim", rows: Mapping[str, list[float]] = ONE, first: int = 0, **changed: Any) -> Result:
    """A record with these figures by task and seed; of one seed, without runs."""
    tasks, seeds = [], list(range(first, first + len(next(iter(rows.values())))))
    for name, values in rows.items():
        runs = [SeedRun(seed, dict.fromkeys(METRICS, v)) for seed, v in zip(seeds, values, strict=True)]
        means = dict.fromkeys(METRICS, sum(values) / len(values))
        tasks.append(TaskResult(name, 4, 6, means, [], TIMES, 2_000_000, runs=runs if len(runs) > 1 else []))
    plain: dict[str, Any] = {"protocol": "online", "params": {"size": 64}, "backbone": "b", "size": 64, "seed": first}
    plain |= {"seeds": seeds if len(seeds) > 1 else []}
    return Result(method=method, tasks=tasks, **(plain | changed))


def call(*words: object, **env: str) -> Ran:
    return CliRunner().invoke(compare, [str(word) for word in words], env=env)


def said(ran: Ran, kind: type[EverlineError] = ConfigError) -> str:
    assert isinstance(ran.exception, kind), ran.output
    return str(ran.exception)


@pytest.fixture
def runs(tracking_uri: str) -> list[str]:
    """Two runs of everline/online."""
    prepare(tracking_uri, "online")
    return [track(one, tracking_uri) for one in (result(), result("lemo", TWO))]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three records of three seeds."""
    for name, rows in (("padim", ONE), ("lemo", TWO), ("kng", THREE)):
        write_result(result(name, rows), tmp_path / f"{name}.json")
    return [tmp_path / f"{name}.json" for name in ("padim", "lemo", "kng")]


def test_runs_compare_like_the_files_of_their_records(
    runs: list[str], files: list[Path], tracking_uri: str, tmp_path: Path
) -> None:
    assert call(runs[0], runs[1][:8], "--tracking", tracking_uri, "--json", tmp_path / "r.json").exit_code == 0
    assert call(*files[:2], "--json", tmp_path / "f.json").exit_code == 0
    of_runs, of_files = (json.loads((tmp_path / name).read_text())["records"] for name in ("r.json", "f.json"))
    for n, (run, file) in enumerate(zip(of_runs, of_files, strict=True)):
        assert (run["run"], run["file"], file["run"], file["file"]) == (runs[n], None, None, str(files[n]))
        assert run["label"] == f"{file['label']} (run {runs[n][:8]})"
        differ = ("label", "run", "file")
        assert {k: v for k, v in run.items() if k not in differ} == {k: v for k, v in file.items() if k not in differ}


def test_a_file_and_a_run_compare_and_the_page_says_the_run(
    runs: list[str], files: list[Path], tracking_uri: str, tmp_path: Path
) -> None:
    page, report = tmp_path / "p.md", tmp_path / "r.html"
    ran = call(files[0], runs[1], "--tracking", tracking_uri, "--markdown", page, "--report", report)
    assert ran.exit_code == 0, ran.exception
    assert f"* lemo (run {runs[1][:8]}): " in page.read_text() and f"; run {runs[1]}\n" in page.read_text()
    assert f"run {runs[1]}" in report.read_text()


def test_an_experiment_is_compared_whole_and_says_what_it_left_out(
    runs: list[str], tracking_uri: str, tmp_path: Path
) -> None:
    for n in range(2):
        record_run(tracking_uri, Run("everline/online", f"bare {n}"))
    ran = call("--experiment", "everline/online", "--tracking", tracking_uri, "--json", tmp_path / "r.json")
    assert ran.exit_code == 0, ran.exception
    assert "everline/online: 2 finished runs have no record and are left out." in " ".join(ran.stderr.split())
    assert [one["run"] for one in json.loads((tmp_path / "r.json").read_text())["records"]] == runs


def test_children_with_a_record_count(tracking_uri: str, tmp_path: Path) -> None:
    children = [
        Run("sweep", "trial", artifacts={"result.json": result(name, rows).dumps()})
        for name, rows in (("padim", ONE), ("lemo", TWO))
    ]
    prepare(tracking_uri, "online")
    record_run(tracking_uri, Run("sweep", "parent", children=children))
    ran = call("--experiment", "sweep", "--tracking", tracking_uri, "--json", tmp_path / "r.json")
    assert ran.exit_code == 0, ran.exception
    plain = json.loads((tmp_path / "r.json").read_text())
    assert sorted(one["method"] for one in plain["records"]) == ["lemo", "padim"]
    assert "1 finished runs have no record" in " ".join(ran.stderr.split())


def test_of_runs_without_a_common_task_those_of_one_compare(tracking_uri: str, tmp_path: Path) -> None:
    prepare(tracking_uri, "online")
    for task, name, rows in (("bolt", "padim", ONE), ("bolt", "lemo", TWO), ("nut", "padim", THREE)):
        one = result(name, rows)
        one.tasks[:] = [replace(one.tasks[0], task=task)]
        record_run(tracking_uri, Run("sweep", f"{name} on {task}", artifacts={"result.json": one.dumps()}))
    words = ["--experiment", "sweep", "--tracking", tracking_uri]
    assert "--task NAME compares those of one (bolt, nut)" in said(call(*words))
    assert "they have bolt, nut" in said(call(*words, "--task", "cog"))
    ran = call(*words, "--task", "bolt", "--json", tmp_path / "r.json")
    assert ran.exit_code == 0, ran.exception
    plain = json.loads((tmp_path / "r.json").read_text())
    assert plain["shared_tasks"] == ["bolt"] and sorted(one["method"] for one in plain["records"]) == ["lemo", "padim"]


def test_a_run_twice_is_refused(runs: list[str], tracking_uri: str) -> None:
    assert "given twice" in said(call(runs[0], runs[0][:8], "--tracking", tracking_uri))
    assert "given twice" in said(call(runs[0], "--experiment", "everline/online", "--tracking", tracking_uri))


def test_runs_without_a_record_are_named(tracking_uri: str) -> None:
    run_id = record_run(tracking_uri, Run("bare", "one"))
    assert f"run {run_id}" in said(call(run_id, "--tracking", tracking_uri), DataError)
    assert "1 finished runs, none of which" in said(
        call("--experiment", "bare", "--tracking", tracking_uri), DataError
    )
    broken = record_run(tracking_uri, Run("bare", "two", artifacts={"result.json": '{"method": NaN}'}))
    assert f"run {broken}: result.json: not a result record" in said(
        call(broken, "--tracking", tracking_uri), DataError
    )


def test_a_record_that_is_too_large_is_not_read(
    runs: list[str], tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    assert "at most 100 are read" in said(call(runs[0], "--tracking", tracking_uri), DataError)


def test_too_many_records_are_refused(runs: list[str], tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST", 1)
    assert "more than 1 of its runs" in said(call("--experiment", "everline/online", "--tracking", tracking_uri))


def test_what_does_not_apply_is_refused(files: list[Path], tmp_path: Path) -> None:
    assert "--data is of versions" in said(call(files[0], "--data", tmp_path))
    assert "--fleet is of versions" in said(call(files[0], "--fleet", "f.yaml"))
    assert "--tracking says where runs are" in said(call(files[0], "--tracking", "sqlite:///x.db"))
    assert "says none" in said(call("0123abcd", "--tracking", "none"))
    assert "says none" in said(call("--experiment", "e", EVERLINE_TRACKING="none"))
    assert call(files[0], EVERLINE_TRACKING="sqlite:///x.db").exit_code == 0  # it stands there for all commands
    assert call().exit_code == 2


def test_a_file_that_is_called_like_a_run_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_result(result(), tmp_path / "0123abcd")
    assert call("0123abcd").exit_code == 0


def test_records_of_several_seeds_are_paired_with_the_best(files: list[Path], tmp_path: Path) -> None:
    ran = call(*files, "--json", tmp_path / "r.json", "--markdown", tmp_path / "p.md", "--report", tmp_path / "r.html")
    assert ran.exit_code == 0, ran.exception
    found = json.loads((tmp_path / "r.json").read_text())["significance"]
    assert found["best"] == "lemo" and list(found["figures"]) == ["image_auroc", "aupro", "pixel_f1"]
    rows = {one["record"]: one for one in found["figures"]["aupro"]}
    own, best, low = (np.mean([rows["bolt"], rows["nut"]], axis=0) for rows in (ONE, TWO, THREE))
    p = ttest_rel(own, best).pvalue, ttest_rel(low, best).pvalue
    assert rows["padim"]["difference"] == pytest.approx((own - best).mean())
    assert [rows[name]["p"] for name in ("padim", "kng")] == pytest.approx(p)
    small, large = sorted(p)
    assert sorted(one["holm"] for one in rows.values()) == pytest.approx([2 * small, max(large, 2 * small)])
    assert (rows["padim"]["wins"], rows["padim"]["of"], rows["padim"]["seeds"]) == (1, 6, 3)
    for text in (ran.stdout, (tmp_path / "p.md").read_text(), (tmp_path / "r.html").read_text()):
        assert "paired over seeds, pixel F1: less lemo" in text and "1 of 6" in text
    assert "3 seeds are weak evidence." in found["note"] in (tmp_path / "p.md").read_text()


def test_single_seeds_say_that_nothing_can_be_paired(tmp_path: Path) -> None:
    for name, rows in (("padim", {"bolt": [0.5]}), ("lemo", {"bolt": [0.75]})):
        write_result(result(name, rows), tmp_path / f"{name}.json")
    ran = call(tmp_path / "padim.json", tmp_path / "lemo.json", "--markdown", tmp_path / "p.md")
    text = (tmp_path / "p.md").read_text()
    assert ran.exit_code == 0 and "Not paired over seeds: the records have a single seed each" in text
    assert "paired over seeds," not in text
    alone = call(tmp_path / "padim.json", "--json", "-")
    assert json.loads(alone.stdout)["significance"] == {"best": None, "by": "image_auroc", "figures": {}, "note": ""}


def compared(*results: Result) -> Comparison:
    return Comparison.of([Source(one, Path(f"{n}.json")) for n, one in enumerate(results)])


def test_records_of_other_seeds_are_named_and_left_out() -> None:
    found = paired(compared(result(), result("lemo", TWO), result("kng", THREE, first=7)))
    assert [one.record for one in found.figures["aupro"]] == ["padim"]
    assert "want of two seeds in common with it: kng." in found.why
    apart = paired(compared(result(), result("lemo", TWO, first=7)))
    assert apart.best is None and "no two records share two seeds" in apart.why


def test_records_that_are_alike_differ_by_nothing_without_a_warning() -> None:
    found = paired(compared(result(), result("lemo", ONE)))
    (row,) = found.figures["image_auroc"]
    assert (row.difference, row.p, row.holm, row.ties) == (0.0, 1.0, 1.0, 6)


def test_a_sequence_is_paired_by_its_averages(
    sequence: Callable[..., Continued], record: Callable[..., Result]
) -> None:
    low = [sequence([[0.8, 0.2, 0.4], [0.9, 0.6, 0.3], [0.5, 0.4, x]], seed=n) for n, x in enumerate((0.6, 0.9))]
    high = [sequence([[0.8, 0.2, 0.4], [0.9, 0.6, 0.3], [0.9, 0.9, x]], seed=n) for n, x in enumerate((0.9, 0.8))]
    made = [record(pooled_runs(low), seeds=[0, 1]), record(pooled_runs(high), "replay", seeds=[0, 1])]
    comparison = compared(*made)
    assert cells(comparison, comparison.records[0], "aupro") == {
        "average": {0: pytest.approx(0.5), 1: pytest.approx(0.6)}
    }
    (row,) = paired(comparison).figures["pixel_f1"]
    assert (row.tasks, row.seeds, row.wins) == (1, 2, 0)
    assert row.difference == pytest.approx(0.55 - (2.7 + 2.6) / 6)


def test_a_figure_that_none_has_is_left_out() -> None:
    def bare(method: str, rows: Mapping[str, list[float]]) -> Result:
        made = result(method, rows)
        for task in made.tasks:
            for run in task.runs:
                run.metrics["aupro"] = math.nan  # type: ignore[index]
        return made

    assert list(paired(compared(bare("padim", ONE), bare("lemo", TWO))).figures) == ["image_auroc", "pixel_f1"]
