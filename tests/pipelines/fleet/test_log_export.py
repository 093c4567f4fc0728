"""What an auditor gets: every record with its verdict and its revision, whole or not at all, and nothing that runs."""

import csv
import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from everline.methods.errors import ConfigError, StoreError
from everline.pipelines.fleet import log_export
from everline.pipelines.fleet.log_export import TABLE, chosen_of, export, file_of, safe
from everline.platform import log
from everline.platform.log import LogReader, LogWriter
from everline.platform.record import Record
from hypothesis import given
from hypothesis import strategies as st

DAY = 86_400 * 10**9
FLEET = "store: ./store\nlines:\n  mono: {method: coreset}\n"
HOSTILE = ("../../etc/passwd", "=HYPERLINK(1)", "a/b\\c", "..", "x" * 200, "größe", "")


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SEAL_RECORDS", 5)
    monkeypatch.setattr(log_export, "GROUP_ROWS", 4)


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A line with 12 images, a version, two words of operators on image 3 and one on image 4."""
    (tmp_path / "fleet.yaml").write_text(FLEET)
    with LogWriter.open(tmp_path / "store" / "mono") as writer:
        for n in range(12):
            verdict = "reject" if n % 3 == 0 else "pass"
            writer.append(
                [
                    Record(
                        "image", f"i{n}", n * DAY, b"\x89PNG" + bytes([n]), score=-n / 3, threshold=1.5, p_value=0.25,
                        version=1, verdict=verdict, admitted=verdict == "pass",
                    )
                ]
            )  # fmt: skip
        writer.append([Record("publish", "publish-12", 12 * DAY, version=2)])
        for n, (of, label, by) in enumerate([(3, "defect", "ann"), (4, "defect", None), (3, "ok", "bob")]):
            data = {"of": of, "label": label} | ({"by": by} if by else {})
            writer.append([Record("feedback", f"f{n}", (13 + n) * DAY, data=data)])
    return tmp_path / "fleet.yaml"


def run(fleet: Path, to: str, *words: str) -> dict:
    at = ["mono", "--fleet", str(fleet), "--to", str(fleet.parent / to), "--json", "-", *words]
    ran = CliRunner().invoke(export, at, catch_exceptions=False)
    assert ran.exit_code == 0
    return json.loads(ran.stdout)


def rows(folder: Path) -> list[dict]:
    with (folder / "records.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_parquet_has_every_record_and_its_revision(fleet: Path) -> None:
    found = run(fleet, "out")
    assert found == {
        "line": "mono", "format": "parquet", "records": 16, "images": 12, "image_bytes": 60, "revised": 2
    }  # fmt: skip
    table = pq.ParquetDataset(sorted((fleet.parent / "out").glob("*.parquet"))).read()
    assert table.schema.equals(TABLE)
    got = table.to_pylist()
    assert [r["seq"] for r in got] == list(range(16))
    assert [r["image"] for r in got] == [r.image for r in LogReader(fleet.parent / "store" / "mono").records()]
    assert (got[3]["verdict"], got[3]["revised_to"], got[3]["revised_by"]) == ("reject", "ok", "bob")
    assert (got[4]["revised_to"], got[4]["revised_by"]) == ("defect", None)
    assert got[3]["revised_at"] == datetime(1970, 1, 16, tzinfo=UTC)
    assert got[3]["time"] == datetime(1970, 1, 4, tzinfo=UTC)
    assert got[5]["revised_to"] is None and got[5]["threshold"] == 1.5 and got[12]["kind"] == "publish"


def test_a_relative_folder_whose_name_looks_like_an_address_is_a_folder(
    fleet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fleet.parent)
    at = ["mono", "--fleet", "fleet.yaml", "--to", "s3:a?b/out"]
    assert CliRunner().invoke(export, at, catch_exceptions=False).exit_code == 0
    assert list((fleet.parent / "s3:a?b" / "out").glob("*.parquet"))


def test_images_lie_beside_a_csv(fleet: Path) -> None:
    run(fleet, "out", "--format", "images")
    got = rows(fleet.parent / "out")
    assert [int(r["seq"]) for r in got] == list(range(16))
    for n, row in enumerate(got[:12]):
        assert (fleet.parent / "out" / row["file"]).read_bytes() == b"\x89PNG" + bytes([n])
        assert row["file"] == f"images/000000000/{n:012d}-i{n}.png"
    assert (got[3]["revised_to"], got[3]["revised_at"], got[3]["revised_by"]) == (
        "ok", "1970-01-16T00:00:00.000000000Z", "bob"
    )  # fmt: skip
    assert float(got[3]["score"]) == -1.0  # a number is no formula
    assert json.loads((fleet.parent / "out" / "export.json").read_text())["log_records"] == 16


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--since", "10"], range(10, 16)),
        (["--until", "2"], range(3)),
        (["--since", "3", "--until", "7", "--only", "reject"], [3, 6]),
        (["--only", "reject", "--only", "pass", "--until", "1970-01-03"], [0, 1, 2]),
        (["--since", "1970-01-11", "--until", "1970-01-12T00:00"], [10]),
        (["--since", "1970-01-11T02:00+02:00", "--until", "1970-01-12T00:00:01Z"], [10, 11]),
        (["--since", "99"], []),
    ],
)
@pytest.mark.parametrize("kind", ["images", "parquet"])
def test_only_what_is_asked_for(fleet: Path, words: list[str], wanted: list[int], kind: str) -> None:
    assert run(fleet, "out", "--format", kind, *words)["records"] == len(wanted)
    if kind == "images":
        assert [int(r["seq"]) for r in rows(fleet.parent / "out")] == list(wanted)
    else:
        files = sorted((fleet.parent / "out").glob("*.parquet"))
        assert pq.ParquetDataset(files).read()["seq"].to_pylist() == list(wanted)


@pytest.mark.parametrize("kind", ["images", "parquet"])
def test_rejects_are_inspections_and_not_what_was_said_of_them(fleet: Path, kind: str) -> None:
    with LogWriter.open(fleet.parent / "store" / "mono") as writer:
        said = {"of": 6, "id": "i6", "label": "ok", "by": "eve"}
        writer.append([Record("feedback", "f3", 16 * DAY, b"\x89PNG\x06", verdict="reject", version=1, data=said)])
        writer.append([Record("repeat", "i1", 17 * DAY, verdict="reject", version=2, data={"of": 1})])
    found = run(fleet, "out", "--format", kind, "--only", "reject")
    assert (found["records"], found["images"], found["revised"]) == (5, 4, 2)
    if kind == "images":
        got = rows(fleet.parent / "out")
        assert [(row["id"], row["kind"], row["revised_to"]) for row in got] == [
            ("i0", "image", ""), ("i3", "image", "ok"), ("i6", "image", "ok"), ("i9", "image", ""),
            ("i1", "repeat", ""),
        ]  # fmt: skip
        assert len(list((fleet.parent / "out" / "images").rglob("*.png"))) == 4


@pytest.mark.parametrize("word", ["yesterday", "-1", "2026-13-01", "9" * 13, "", "2026-05-31T06:00+99:00"])
def test_a_bound_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="--since takes"):
        chosen_of(word, None, ())


@pytest.mark.parametrize("kind", ["images", "parquet"])
def test_an_export_that_fails_leaves_nothing(fleet: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    shard = sorted((fleet.parent / "store" / "mono").glob("shard-*"))[1]
    data = bytearray(shard.read_bytes())
    data[data.index(b"\x89PNG\x07") + 4] ^= 1
    shard.write_bytes(data)
    before = sorted(p.name for p in fleet.parent.iterdir())
    with pytest.raises(StoreError, match="checksum"):
        run(fleet, "out", "--format", kind)
    assert sorted(p.name for p in fleet.parent.iterdir()) == before

    def full(*_: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(log_export.Images, "finish", full)
    monkeypatch.setattr(log_export.Parquet, "finish", full)
    with pytest.raises(StoreError, match="no space"):
        run(fleet, "out", "--format", kind, "--until", "4")
    assert sorted(p.name for p in fleet.parent.iterdir()) == before


def test_nothing_that_is_there_is_written_over(fleet: Path) -> None:
    (fleet.parent / "out").mkdir()
    run(fleet, "out")
    before = {p.name: p.read_bytes() for p in (fleet.parent / "out").iterdir()}
    with pytest.raises(ConfigError, match="there already"):
        run(fleet, "out")
    assert {p.name: p.read_bytes() for p in (fleet.parent / "out").iterdir()} == before
    with pytest.raises(ConfigError, match="there already"):
        run(fleet, "fleet.yaml")


def test_parts_of_a_set_size_hold_all_records(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_export, "PART_BYTES", 15)
    run(fleet, "out")
    files = sorted((fleet.parent / "out").glob("*.parquet"))
    assert [file.name[8:20] for file in files] == [f"{n:012d}" for n in (0, 4, 8, 12)]
    assert pq.ParquetDataset(files).read()["seq"].to_pylist() == list(range(16))


@given(st.sampled_from(HOSTILE) | st.text(max_size=300), st.integers(0, 10**12 - 1))
def test_no_id_leads_out_of_the_folder(id: str, seq: int) -> None:
    name = file_of(Record("image", id, image=b"x", seq=seq)) if _utf8(id) else "images/000000000/0.bin"
    root = Path("/somewhere/out")
    assert (root / name).resolve().is_relative_to(root / "images")
    assert name.isascii() and name.isprintable() and len(Path(name).name) < 120 and name.count("/") == 2


def _utf8(text: str) -> bool:
    return not any(0xD800 <= ord(c) < 0xE000 for c in text)


@given(st.text(max_size=20))
def test_no_text_begins_a_formula_and_every_text_can_be_had_back(text: str) -> None:
    shown = safe(text) or ""
    assert not shown.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))
    assert (shown[1:] if shown.startswith("'") else shown) == text


def test_hostile_ids_come_out_harmless(fleet: Path) -> None:
    with LogWriter.open(fleet.parent / "store" / "mono") as writer:
        writer.append([Record("image", id, image=b"x", data={"x": "=1"}) for id in HOSTILE])
    run(fleet, "out", "--format", "images", "--since", "16")
    got = rows(fleet.parent / "out")
    assert [r["id"].removeprefix("'") for r in got] == list(HOSTILE)
    assert got[1]["id"] == "'=HYPERLINK(1)"
    assert all((fleet.parent / "out" / r["file"]).read_bytes() == b"x" for r in got)
    assert not [p for p in fleet.parent.rglob("*passwd*") if p.parent.name != "000000000"]


def test_a_line_without_a_log_is_told(fleet: Path) -> None:
    fleet.write_text(FLEET + "  other: {method: coreset}\n")
    with pytest.raises(StoreError, match="no log"):
        CliRunner().invoke(
            export, ["other", "--fleet", str(fleet), "--to", str(fleet.parent / "o")], catch_exceptions=False
        )
