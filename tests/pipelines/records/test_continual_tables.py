"""A sequence on the terminal: its matrix, its measures, its costs, with a dash for what is not defined."""

import math
from collections.abc import Callable

import pytest
from everline.pipelines.records.continual_tables import continual_tables, f1_per_mb, plain
from everline.pipelines.records.continued import FIGURES, Continued, pooled_runs
from everline.pipelines.records.report import Table
from everline.pipelines.records.results import Result
from everline.pipelines.records.tables import show

Sequence = Callable[..., Continued]
LOW = [[0.6, 0.2, 0.4], [0.7, 0.4, 0.3], [0.5, 0.2, 0.5]]


def cells(table: Table, row: str) -> dict[str, object]:
    """A row by the heads of its columns, each on one line."""
    found = next(one for one in table.rows if one[0] == row)
    return {" ".join(head.split()): cell for head, cell in zip(table.columns, found, strict=True)}


def test_the_matrices_are_of_the_f1_and_of_image_auroc(sequence: Sequence) -> None:
    f1, auroc = continual_tables(sequence(figures={"pixel_f1": LOW}))[:2]
    assert f1.title.startswith("pixel F1") and auroc.title.startswith("image AUROC")
    assert f1.columns == ["learned", "a", "b", "c"]
    assert f1.rows[1] == ["2. b", "0.700", "0.400", "0.300"] and auroc.rows[1][1] == "0.900"


def test_every_figure_has_its_measures_and_dashes_where_nothing_is_defined(sequence: Sequence) -> None:
    table = continual_tables(sequence())[2]
    assert [row[0] for row in table.rows] == [
        "image AUROC", "image F1", "pixel AUROC", "pixel F1", "pixel AP", "AUPRO"
    ]  # fmt: skip
    assert cells(table, "AUPRO") == {
        "": "AUPRO", "average": "0.533", "forgetting": "0.300", "forgetting relative": "0.389", "BWT": "-0.250",
        "FWT": "+0.100", "intran- sigence": None, "relative gap": None,
    }  # fmt: skip
    assert table.note == ""


def test_seeds_show_their_deviation(sequence: Sequence) -> None:
    table = continual_tables(pooled_runs([sequence(), sequence(LOW, seed=1)]))[2]
    assert cells(table, "AUPRO")["average"] == "0.467 ± 0.094" and "over seeds" in table.note


def test_a_mean_over_fewer_tasks_says_so(sequence: Sequence) -> None:
    gap = [[math.nan, *row[1:]] for row in LOW]
    table = continual_tables(sequence(figures={"aupro": gap, "pixel_ap": gap}))[2]
    assert table.note == "Over the 2 of 3 tasks that have it: pixel AP, AUPRO."
    bare = sequence(
        figures={name: [[math.nan] * 3] * 3 for name in FIGURES if name not in ("image_auroc", "image_f1")}
    )
    matrix, _, measures, _ = continual_tables(bare)
    assert matrix.title.startswith("image F1") and measures.note == "" and measures.rows[-1][1:] == [None] * 7


def test_costs_are_in_mb_and_the_share_of_tasks_found_is_there_if_asked(sequence: Sequence) -> None:
    costs = continual_tables(sequence())[3]
    assert costs.rows == [["domain", "2.00", "5.00", "1.00", "12.5", "4.25"]]
    costs = continual_tables(sequence(inferred=[[0.5, 0.75, 1.0]]))[3]
    assert (costs.columns[-1], costs.rows[0][-1]) == ("task\nfound", "0.750")


def test_f1_per_mb_is_over_all_memory(sequence: Sequence) -> None:
    assert f1_per_mb(sequence(), "pixel_f1") == "0.0667"  # .5333 / 8 MB
    nothing = dict.fromkeys(("networks", "learned", "replay"), 0)
    assert f1_per_mb(sequence(memory_bytes=nothing), "pixel_f1") is None


def test_steps_of_several_orders_are_numbered(sequence: Sequence) -> None:
    own = pooled_runs([sequence(names="abc"), sequence(LOW, names="cab", seed=1)])
    assert [row[0] for row in continual_tables(own)[0].rows] == ["1.", "2.", "3."]


def test_plain_values_have_null_for_what_is_not_defined(sequence: Sequence) -> None:
    found = plain(sequence())
    assert found["measures"]["aupro"]["relative_gap"] is None and found["task_found"] is None
    assert found["trend"]["aupro"] == pytest.approx([0.8, 0.75, 1.6 / 3]) and found["deviation"] == {}


def test_the_terminal_shows_them_below_the_table_by_task(
    sequence: Sequence, record: Callable[..., Result], capsys: pytest.CaptureFixture[str]
) -> None:
    show(record(sequence()))
    said = capsys.readouterr().out
    places = [said.index(words) for words in ("continual: padim", "pixel F1 of each", "after the last", "it costs")]
    assert places == sorted(places) and "1. a" in said
