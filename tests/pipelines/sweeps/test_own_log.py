"""A line's log as a task: order, labels and by whose word, synthetic defects, whole or not at all."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from everline.methods.errors import ConfigError, DataError, StoreError
from everline.pipelines.data.datasets import read_folder
from everline.pipelines.data.masks import read_mask
from everline.pipelines.sweeps import own_log
from everline.pipelines.sweeps.own_labels import read_labels
from everline.pipelines.sweeps.own_log import LogTask, export, reopen
from everline.platform.images import decode
from everline.platform.log import LogReader
from everline.platform.record import Record
from everline.platform.synthetic import spoil
from PIL import Image

Write = Callable[..., LogReader]
GOOD = [("good", n) for n in range(20)]
BAD = [("bad", 20 + n) for n in range(10)]


def numbers(paths: object) -> list[int]:
    return [int(path.stem) for path in paths]  # type: ignore[attr-defined]


def judged(found: LogTask) -> dict[str, list[int]]:
    kinds: dict[str, list[int]] = {}
    for sample in found.task.test:
        kinds.setdefault(sample.kind, []).append(int(sample.path.stem))
    return kinds


def test_earlier_images_are_to_learn_from_and_later_ones_to_judge_by(
    write_log: Write, parts: list[bytes], tmp_path: Path
) -> None:
    found = export(write_log(parts, [*BAD[:2], *GOOD, *BAD]), tmp_path / "out", share=0.6)
    assert numbers(found.task.train) == list(range(2, 14))
    assert judged(found) == {"good": list(range(14, 22)), "rejected": list(range(22, 32))}
    assert found.watermark == 13
    assert (found.made, found.counts["guard"]) == (0, 30)
    assert "18 of 18 labels to judge by are the guard's own opinion" in found.caveat


def test_what_was_taken_is_found_again_as_it_was(write_log: Write, parts: list[bytes], tmp_path: Path) -> None:
    log = write_log(parts, [*GOOD, *BAD[:2], ("seen", 25)])
    found = export(log, tmp_path / "out")
    assert reopen(tmp_path / "out") == found and found.left_out == 1 and found.made > 0
    with pytest.raises(DataError, match="no images of a log"):
        reopen(tmp_path)
    found.task.train[0].write_bytes(b"other")
    with pytest.raises(DataError, match="not what was written"):
        reopen(tmp_path / "out")


def test_files_are_what_was_logged(write_log: Write, parts: list[bytes], tmp_path: Path) -> None:
    found = export(write_log(parts, [*GOOD, *BAD]), tmp_path / "out")
    assert [path.read_bytes() for path in found.task.train] == parts[:10]
    assert read_folder(tmp_path / "out") == found.task


def test_an_operators_last_word_beats_the_guard(write_log: Write, parts: list[bytes], tmp_path: Path) -> None:
    said = [("defect", 11), ("ok", 12), ("defect", 12), ("ok", 20), ("defect", 13), ("ok", 13)]
    found = export(write_log(parts, [*GOOD, *BAD, *said]), tmp_path / "out")
    kinds = judged(found)
    assert kinds["defect"] == [11, 12]
    assert kinds["rejected"] == list(range(21, 30))
    assert {13, 20} < set(kinds["good"])
    assert found.counts == {"operator": 4, "guard": 26, "nobody": 0, "synthetic": 0, "left_out": 0}


def test_what_an_unknown_sender_sent_is_no_label_until_an_operator_says_so() -> None:
    common = {
        "kind": "image",
        "verdict": "reject",
        "admitted": False,
        "data": {"unknown_sender": True, "learn": False},
    }
    records = [Record(id=f"unknown:{n}", seq=n, **common) for n in range(2)]  # type: ignore[arg-type]
    assert read_labels(records) == ([], 2)
    word = Record("feedback", "f", seq=2, data={"of": 1, "label": "defect"})
    labels, left_out = read_labels([*records, word])
    assert [(label.seq, label.defect, label.by) for label in labels] == [(1, True, "operator")] and left_out == 1


def test_what_nobody_called_anything_is_left_out(write_log: Write, parts: list[bytes], tmp_path: Path) -> None:
    rows = [("young", 0), ("young", 1), ("seen", 2), ("seen", 3), *GOOD[4:], *BAD, ("ok", 3)]
    found = export(write_log(parts, rows), tmp_path / "out", share=0.25)
    assert numbers(found.task.train) == [0, 1, 3, 4, 5]
    assert found.counts == {"operator": 1, "guard": 26, "nobody": 2, "synthetic": 0, "left_out": 1}


def test_feedback_on_a_repeated_image_is_on_the_first(write_log: Write, parts: list[bytes]) -> None:
    reader = write_log(parts, [("good", 0), ("repeat", 0), ("defect", 1)])
    labels, left_out = read_labels(reader.records(images=False))
    assert [(one.seq, one.id, one.defect, one.by) for one in labels] == [(0, "i0", True, "operator")]
    assert left_out == 0


@pytest.mark.parametrize("data", [{}, {"of": 0}, {"of": True, "label": "ok"}, {"of": 0, "label": "fine"}])
def test_feedback_that_is_none_is_refused(data: dict[str, object]) -> None:
    image = Record("image", "a", admitted=True, verdict="pass", seq=0)
    with pytest.raises(DataError, match="record 1: feedback names a record"):
        read_labels([image, Record("feedback", "f", data=data, seq=1)])


def test_feedback_on_no_image_is_refused() -> None:
    word = Record("feedback", "f", data={"of": 0, "label": "ok"}, seq=1)
    with pytest.raises(DataError, match="record 0, which is no image"):
        read_labels([Record("publish", "p", version=1, seq=0), word])


def test_too_few_defects_are_filled_up_with_visible_ones(write_log: Write, parts: list[bytes], tmp_path: Path) -> None:
    found = export(write_log(parts, GOOD), tmp_path / "out")
    assert (found.made, judged(found)["synthetic"]) == (10, list(range(10, 20)))
    assert found.task.masked
    assert "10 defects are synthetic" in found.caveat
    for sample in found.task.test:
        if sample.defect:
            mask = read_mask(sample.masks[0], 64)
            pictures = (parts[int(sample.path.stem)], sample.path.read_bytes())
            before, after = (decode(data).astype(int) for data in pictures)
            changed = np.abs(before - after).max(axis=2)
            assert 0.001 <= mask.mean() <= 0.05
            assert changed[~mask].max() <= 1  # the way through floats and back
            assert changed[mask].mean() > 2


def test_defects_are_made_of_images_as_a_line_of_12_bits_sees_them(
    write_log: Write, parts: list[bytes], tmp_path: Path
) -> None:
    deep = []
    for data in parts:
        out = io.BytesIO()
        Image.fromarray(decode(data)[..., 0].astype(np.uint16) * 16).save(out, "PNG")
        deep.append(out.getvalue())
    log = write_log(deep, GOOD)
    found = export(log, tmp_path / "out", bits=12)
    assert found.made == 10 and reopen(tmp_path / "out") == found
    for sample in found.task.test:
        if sample.defect:
            before, after = decode(deep[int(sample.path.stem)], bits=12), decode(sample.path.read_bytes())
            assert np.abs(before.astype(int) - after)[~read_mask(sample.masks[0], 64)].max() <= 1
    with pytest.raises(DataError, match="something else in it"):
        export(log, tmp_path / "out")  # by a line of other bits


def test_real_defects_beside_synthetic_ones_leave_no_masks(
    write_log: Write, parts: list[bytes], tmp_path: Path
) -> None:
    found = export(write_log(parts, [*GOOD, *BAD[:3]]), tmp_path / "out")
    assert {kind: len(found) for kind, found in judged(found).items()} == {"good": 10, "rejected": 3, "synthetic": 10}
    assert not found.task.masked
    assert read_folder(tmp_path / "out") == found.task


def test_synthetic_defects_can_be_refused(write_log: Write, parts: list[bytes], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 defects among 13 images to judge by, 10 are needed"):
        export(write_log(parts, [*GOOD, *BAD[:3]]), tmp_path / "out", synthetic=False)
    assert not (tmp_path / "out").exists()


def test_a_defect_follows_from_its_image_and_seed(parts: list[bytes]) -> None:
    assert spoil(parts[0], 3) == spoil(parts[0], 3)
    assert spoil(parts[0], 3)[1] != spoil(parts[0], 4)[1]


def test_what_is_there_and_equal_is_kept(write_log: Write, parts: list[bytes], tmp_path: Path) -> None:
    reader = write_log(parts, GOOD)
    first = export(reader, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    assert export(reader, tmp_path / "out") == first
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    other = export(reader, tmp_path / "other")
    assert [s.path.read_bytes() for s in other.task.test] == [s.path.read_bytes() for s in first.task.test]


def test_anything_else_there_is_refused_and_stays(write_log: Write, parts: list[bytes], tmp_path: Path) -> None:
    reader = write_log(parts, GOOD)
    export(reader, tmp_path / "out")
    with pytest.raises(DataError, match="something else"):
        export(reader, tmp_path / "out", share=0.4)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="something else"):
        export(reader, tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "x"


@pytest.mark.parametrize("harm", ["change", "remove", "add"])
def test_a_changed_export_is_noticed(write_log: Write, parts: list[bytes], tmp_path: Path, harm: str) -> None:
    reader = write_log(parts, GOOD)
    first = export(reader, tmp_path / "out").task.train[0]
    if harm == "change":
        first.write_bytes(parts[59])
    elif harm == "remove":
        first.unlink()
    else:
        first.with_name("other.png").write_bytes(parts[59])
    with pytest.raises(DataError, match=r"not what was written there|something else"):
        export(reader, tmp_path / "out")


def test_a_failure_half_way_leaves_nothing(
    write_log: Write, parts: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, left = write_log(parts, GOOD), [5]

    def save(path: Path, data: bytes) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(28, "No space left on device")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    monkeypatch.setattr(own_log, "_save", save)
    with pytest.raises(StoreError, match="No space"):
        export(reader, tmp_path / "made" / "out")
    assert not list((tmp_path / "made").iterdir())


def test_a_stretch_of_the_log_can_be_taken(write_log: Write, parts: list[bytes], tmp_path: Path) -> None:
    reader = write_log(parts, [*GOOD, *BAD, ("defect", 25)])
    found = export(reader, tmp_path / "out", since=8, most=20)
    assert numbers(found.task.train) == [10, 11, 12, 13, 14]
    assert judged(found)["defect"] == [25]


def test_the_index_says_by_whose_word(write_log: Write, parts: list[bytes], tmp_path: Path) -> None:
    export(write_log(parts, [*GOOD, *BAD, ("ok", 15)]), tmp_path / "out")
    plain = json.loads((tmp_path / "out" / "log.json").read_text())
    by = {row["seq"]: row["by"] for row in plain["images"]}
    assert (plain["line"], by[14], by[15]) == ("mono", "guard", "operator")


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.0}, {"most": 1}, {"least_defects": 0}])
def test_values_out_of_range_are_refused(
    write_log: Write, parts: list[bytes], tmp_path: Path, wrong: dict[str, float]
) -> None:
    with pytest.raises(ConfigError, match="share is in"):
        export(write_log(parts, GOOD), tmp_path / "out", **wrong)  # type: ignore[arg-type]


def test_too_few_normal_images_are_refused(write_log: Write, parts: list[bytes], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 normal images among 11"):
        export(write_log(parts, [GOOD[0], *BAD]), tmp_path / "out")
    with pytest.raises(DataError, match="0 normal images"):
        export(LogReader(tmp_path / "nothing"), tmp_path / "out")
