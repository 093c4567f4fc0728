"""`everline compare` of sequences: the thesis' table, its figure 5.4, matrices, and references among the records."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from everline.methods.errors import ConfigError, DataError
from everline.pipelines.comparing.compare import compare
from everline.pipelines.comparing.comparison import Comparison
from everline.pipelines.comparing.comparison_continual import heats, trends
from everline.pipelines.comparing.comparison_tables import tables
from everline.pipelines.records.continued import FIGURES, Continued, pooled_runs
from everline.pipelines.records.report import Table
from everline.pipelines.records.results import Result, write_result
from everline.pipelines.runs.references import with_references

NAN = math.nan
SINGLE = [[0.8, NAN, NAN], [0.8, 0.8, NAN], [0.8, 0.8, 0.8]]
JOINT = [[0.8, NAN, NAN], [0.8, 0.7, NAN], [0.7, 0.6, 0.9]]

Sequence = Callable[..., Continued]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, record: Callable[..., Result]) -> Write:
    """write("a", continued, "naive", options=..., params=...) -> the file a.json."""

    def written(name: str, own: Continued, *words: str, **changed: Any) -> Path:
        write_result(record(own, *words, **changed), tmp_path / f"{name}.json")
        return tmp_path / f"{name}.json"

    return written


def three(sequence: Sequence, write: Write) -> list[Path]:
    """Records of single models, joint models and of one that went through the steps, none with a reference."""
    alone = {"sequential": False, "memory_bytes": {"networks": 2_000_000, "learned": 15_000_000, "replay": 0}}
    return [
        write("single", sequence(SINGLE, scenario="task", **alone), "single"),
        write("joint", sequence(JOINT, sequential=False), "multitask", options={"joint": "each"}),
        write("naive", sequence()),
    ]


def made(files: list[Path]) -> dict[str, Table]:
    """The tables by the end of their titles (behind the last colon)."""
    return {table.title.rpartition(": ")[2]: table for table in tables(Comparison.read(files))}


def column(table: Table, number: int) -> dict[Any, Any]:
    """A record's column by the rows' names."""
    return {row[0]: row[number] for row in table.rows}


def gap(result: Result) -> float:
    """The relative gap of its AUPRO."""
    assert result.continued is not None
    return result.continued.measures["aupro"]["relative_gap"]


def test_the_performance_overview_has_the_thesis_rows(sequence: Sequence, write: Write) -> None:
    table = made(three(sequence, write))["performance overview"]
    assert table.columns == ["", "padim strategy=single", "padim strategy=multitask", "padim strategy=naive"]
    naive, single = column(table, 3), column(table, 1)
    assert list(naive) == [
        "image AUROC", "image F1", "pixel AUROC", "pixel F1", "pixel AP", "AUPRO", "training, s",
        "inference, ms an image", "architecture memory, MB", "additional memory, MB", "relative gap, %",
        "average forgetting, %", "average forgetting", "intransigence", "pixel F1 per MB",
    ]  # fmt: skip
    assert (naive["pixel F1"], naive["training, s"], naive["inference, ms an image"]) == ("0.533", "12.5", "4.25")
    assert (naive["architecture memory, MB"], naive["additional memory, MB"]) == ("2.00", "6.00")
    assert (naive["average forgetting, %"], naive["average forgetting"]) == ("38.89", "0.300")
    none = [single[name] for name in ("average forgetting, %", "average forgetting", "intransigence")]
    assert single["relative gap, %"] == "0.00" and none == [None] * 3


def test_the_records_of_single_and_joint_models_measure_the_others(sequence: Sequence, write: Write) -> None:
    naive = column(made(three(sequence, write))["performance overview"], 3)
    assert (naive["relative gap, %"], naive["intransigence"]) == ("33.33", "+0.100")
    alone = column(made(three(sequence, write)[2:])["performance overview"], 1)
    assert (alone["relative gap, %"], alone["intransigence"]) == (None, None)


def test_references_that_a_record_has_are_kept(sequence: Sequence, record: Callable[..., Result]) -> None:
    own = sequence().beside(sequence([[0.5] * 3] * 3), None)
    others = [record(sequence(SINGLE), "single"), record(sequence(JOINT), "multitask")]
    after, _, _ = with_references([record(own), *others])
    assert after.continued is not None and after.continued.single == own.single
    assert after.continued.measures["aupro"]["intransigence"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "changed",
    [
        {"params": {"sigma": 2.0}},
        {"method": "lemo"},
        {"options": {"order": "shuffled"}},
        {"options": {"epochs": 2}},
        {"seed": 1},
        {"seeds": [0, 1]},
    ],
)
def test_another_experiment_is_no_reference(
    changed: dict[str, Any], sequence: Sequence, record: Callable[..., Result]
) -> None:
    single = record(sequence(SINGLE), "single", **changed)
    naive, _ = with_references([record(sequence()), single])
    assert naive.continued == sequence()


def test_another_sequence_is_no_reference(sequence: Sequence, record: Callable[..., Result]) -> None:
    naive, _ = with_references([record(sequence()), record(sequence(SINGLE, names="acb"), "single")])
    assert naive.continued == sequence()


def test_what_only_replay_has_and_what_is_known_when_judging_do_not_matter(
    sequence: Sequence, record: Callable[..., Result]
) -> None:
    replay = record(sequence(), "replay", {"memory": 300, "policy": "reservoir"})
    replay, _ = with_references([replay, record(sequence(SINGLE, scenario="task"), "single")])
    assert gap(replay) == pytest.approx(1 / 3)


def test_joint_models_of_the_last_step_alone_are_no_reference(
    sequence: Sequence, record: Callable[..., Result]
) -> None:
    naive, _ = with_references([record(sequence()), record(sequence(JOINT), "multitask", {"joint": "last"})])
    assert naive.continued == sequence()


def test_a_joint_padim_counts_for_every_form_too(sequence: Sequence, record: Callable[..., Result]) -> None:
    """It is told of no tasks, so its form says nothing."""
    naive = record(sequence(), "naive", params={"form": "each"}, method="padim")
    joint = record(sequence(JOINT), "multitask", params={"form": "one"}, method="padim")
    completed = with_references([naive, joint])[0].continued
    assert completed is not None and completed.joint == sequence(JOINT).matrix


def test_a_single_padim_counts_for_every_way_to_keep_products_apart(
    sequence: Sequence, record: Callable[..., Result]
) -> None:
    def run(strategy: str, matrix: Any, tasks: str, method: str = "padim") -> Result:
        return record(sequence(matrix), strategy, params={"form": tasks}, method=method)

    per_task = run("naive", sequence().matrix["aupro"], "each")
    assert gap(with_references([per_task, run("single", SINGLE, "one")])[0]) == pytest.approx(1 / 3)
    exact = with_references([per_task, run("single", [[0.5] * 3] * 3, "one"), run("single", SINGLE, "each")])
    assert gap(exact[0]) == pytest.approx(1 / 3)  # its own parameters go first
    other = run("naive", SINGLE, "each", "lemo")
    assert math.isnan(gap(with_references([other, run("single", SINGLE, "one", "lemo")])[0]))


def test_seeds_are_measured_against_their_own_references(sequence: Sequence, record: Callable[..., Result]) -> None:
    two = {"seeds": [0, 1]}
    own = pooled_runs([sequence(), sequence(seed=1)])
    single = pooled_runs([sequence(SINGLE), sequence([[0.5] * 3] * 3, seed=1)])
    found, _ = with_references([record(own, **two), record(single, "single", **two)])
    assert gap(found) == pytest.approx((1 / 3 + (0.5 - 1.6 / 3) / 0.5) / 2)


def test_figure_5_4_has_a_curve_for_each_record(sequence: Sequence, write: Write) -> None:
    f1, auroc = trends(Comparison.read(three(sequence, write)))
    assert (f1.title, auroc.title) == ("pixel F1 as tasks are added", "image AUROC as tasks are added")
    assert list(f1.series) == ["padim strategy=single", "padim strategy=multitask", "padim strategy=naive"]
    assert f1.series["padim strategy=naive"] == [
        (1, pytest.approx(0.8)), (2, pytest.approx(0.75)), (3, pytest.approx(1.6 / 3))
    ]  # fmt: skip


def test_the_trend_is_a_table_too(sequence: Sequence, write: Write) -> None:
    table = made(three(sequence, write))["mean over the tasks learned by each step"]
    assert table.columns == ["record", "1", "2", "3"] and table.rows[2][1:] == ["0.800", "0.750", "0.533"]
    assert table.note == "Learned in the steps: 1 a; 2 b; 3 c."


def test_another_order_is_compared_by_task_alone(sequence: Sequence, write: Write) -> None:
    files = [write("a", sequence()), write("b", sequence(names="cba"), options={"order": "2,1,0"})]
    found = made(files)
    trend = found["mean over the tasks learned by each step"]
    assert [row[0] for row in trend.rows] == ["padim order=given"]
    assert trend.note.endswith("Other tasks, or in another order, and so not in here: padim order=2,1,0.")
    assert found["AUPRO"].rows[0] == ["a", "0.500", "0.700"]
    assert all(len(curve.series) == 1 and "order=2,1,0" in curve.note for curve in trends(Comparison.read(files)))


def test_other_tasks_are_said_not_to_compare(sequence: Sequence, write: Write) -> None:
    files = [write("a", sequence()), write("b", sequence(names="abd"), params={"sigma": 2.0})]
    assert "these do not compare" in made(files)["performance overview"].note


def test_seeds_of_several_orders_compare_where_the_orders_are_the_same(sequence: Sequence, write: Write) -> None:
    more = {"options": {"order": "shuffled"}, "seeds": [0, 1]}
    runs = [sequence(names="abc"), sequence(names="cab", seed=1)]
    both = [write(f"{sigma}", pooled_runs(runs), params={"sigma": sigma}, **more) for sigma in (1.0, 2.0)]
    assert len(trends(Comparison.read(both))[0].series) == 2


def test_all_are_spoken_of_by_one_f1(sequence: Sequence, write: Write) -> None:
    bare = {name: [[NAN] * 3] * 3 for name in FIGURES if name.startswith(("pixel", "aupro"))}
    files = [write("a", sequence()), write("b", sequence(figures=bare), method="lemo")]
    table = made(files)["performance overview"]
    assert "image F1 per MB" in column(table, 1) and "are of the image F1" in table.note
    assert (column(table, 2)["pixel F1"], column(table, 2)["average forgetting"]) == (None, "0.300")


def test_labels_leave_out_what_follows_from_the_strategy(sequence: Sequence, write: Write) -> None:
    replay = {"memory": 300, "policy": "reservoir"}
    files = [
        *three(sequence, write),
        write("r", sequence(), "replay", options=replay),
        write("s", sequence(), "replay", options=replay | {"memory": 800, "policy": "herding"}),
        write("c", sequence(scenario="class")),
    ]
    assert [one.label for one in Comparison.read(files).records] == [
        "padim strategy=single", "padim strategy=multitask", "padim strategy=naive",
        "padim strategy=replay memory=300", "padim strategy=replay memory=800 policy=herding",
        "padim strategy=naive scenario=class",
    ]  # fmt: skip


def test_the_page_has_heatmaps_and_the_trend(sequence: Sequence, write: Write, tmp_path: Path) -> None:
    files = three(sequence, write)
    ran = CliRunner().invoke(compare, [*map(str, files), "--report", str(tmp_path / "r.html")])
    assert ran.exit_code == 0, ran.output
    page = (tmp_path / "r.html").read_text("utf-8")
    assert page.count('<table class="heat">') == 6 == len(heats(Comparison.read(files)))
    assert page.count("<figure>") == 2 and "pixel F1 as tasks are added" in page
    assert "pixel F1 of each task after each step: padim strategy=naive" in " ".join(ran.output.split())


def test_json_and_markdown_have_them(sequence: Sequence, write: Write, tmp_path: Path) -> None:
    written = ["--json", tmp_path / "c.json", "--markdown", tmp_path / "c.md"]
    assert CliRunner().invoke(compare, [str(word) for word in (*three(sequence, write), *written)]).exit_code == 0
    own = json.loads((tmp_path / "c.json").read_text())["records"][2]["continual"]
    assert own["measures"]["pixel_f1"]["relative_gap"] == pytest.approx(1 / 3)
    assert own["trend"]["pixel_f1"][1] == 0.75 and own["memory_bytes"]["learned"] == 5_000_000
    text = (tmp_path / "c.md").read_text("utf-8")
    assert "| relative gap, % | 0.00 | 8.33 | 33.33 |" in text
    assert "| 2. b | 0.900 | 0.600 | 0.300 |" in text


def test_a_record_without_its_sequence_is_refused(sequence: Sequence, write: Write) -> None:
    file = write("a", sequence())
    text = json.loads(file.read_text())
    del text["continual"]
    file.write_text(json.dumps(text))
    with pytest.raises(DataError, match="only a record of the protocol continual has a sequence"):
        Comparison.read([file])
    with pytest.raises(ConfigError, match="differ in protocol"):
        Comparison.read([write("b", sequence()), write("c", sequence(), protocol="online")])


def test_other_data_under_a_tasks_name_is_refused_whatever_the_strategy(sequence: Sequence, write: Write) -> None:
    files = three(sequence, write)[1:]
    plain = json.loads(files[0].read_text())
    plain["tasks"][0]["n_test"] += 1
    files[0].write_text(json.dumps(plain))
    with pytest.raises(ConfigError, match="other data of the same name"):
        Comparison.read(files)
