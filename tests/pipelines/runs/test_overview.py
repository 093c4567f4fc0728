"""The one table of a plan: a row for each method, the figures of each protocol, gaps where it was not run."""

from collections.abc import Callable

from everline.pipelines.records.continued import Continued
from everline.pipelines.records.results import METRICS, Result, TaskResult
from everline.pipelines.runs.overview import overview, overviews


def one(protocol: str, value: float, offline: float | None = None, state: int = 2_000_000) -> Result:
    task = TaskResult(
        "bolt", 4, 6, dict.fromkeys(METRICS, value), [], {"backbone": 10.0, "score": 6.0, "learn": 4.0}, state,
        offline=None if offline is None else dict.fromkeys(METRICS, offline),
        admitted={"normal": 0.5, "defective": offline} if offline == 0.25 else None,
    )  # fmt: skip
    return Result(protocol, "padim", {}, None, 64, 0, [task])


def test_a_row_has_the_figures_of_every_protocol_and_a_gap_where_it_was_not_run() -> None:
    table = overview({
        ("one-epoch", "padim"): one("online", 0.5),
        ("few", "padim"): one("fewshot", 0.75, 0.625, state=4_000_000),
        ("few", "kng"): one("fewshot", 0.875, 0.25, state=6_000_000),
    })  # fmt: skip
    heads = [" ".join(head.split()) for head in table.columns]
    rows = [dict(zip(heads, row, strict=True)) for row in table.rows]
    assert [row["method"] for row in rows] == ["padim", "kng"]
    assert rows[0]["one-epoch image AUROC"] == "0.500" and rows[1]["one-epoch image AUROC"] is None
    assert (rows[1]["few AUPRO not learning"], rows[1]["few AUPRO"]) == ("0.250", "0.875")
    assert (rows[0]["few admitted defective"], rows[1]["few admitted defective"]) == (None, "0.250")
    assert (rows[0]["ms/img"], rows[0]["MB"], rows[1]["MB"]) == ("10.00", "2.0", "6.0")


def test_sequences_have_a_table_of_their_own(
    sequence: Callable[..., Continued], record: Callable[..., Result]
) -> None:
    wide, table = overviews({
        ("seq", "padim"): record(sequence().beside(sequence([[0.8] * 3] * 3), None)),
        ("one-epoch", "padim"): one("online", 0.5),
        ("apart", "padim"): record(sequence(sequential=False), "single"),
        ("seq", "lemo"): record(sequence(), method="lemo"),
    })  # fmt: skip
    assert [row[0] for row in wide.rows] == ["padim"] and len(overviews({("o", "padim"): one("online", 0.5)})) == 1
    heads = [" ".join(head.split()) for head in table.columns]
    rows = {row[0]: dict(zip(heads, row, strict=True)) for row in table.rows}
    assert list(rows) == ["lemo, seq", "padim, seq", "padim, apart"]
    shown = [rows["padim, seq"][name] for name in ("image AUROC", "pixel F1", "forgetting", "gap %")]
    assert shown == ["0.533", "0.533", "+0.300", "+33.3"]
    assert (rows["padim, apart"]["forgetting"], rows["lemo, seq"]["gap %"]) == (None, None)
