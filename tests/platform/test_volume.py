"""Run every check of the volume suite on the disk and on S3, and show that each check finds a faulty volume."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from everline.platform import volume_conformance as conformance
from everline.platform.volume import Away, Growing, LocalGrowing, LocalVolume, Place, S3Path, Volume, volume_of

LISTED = [  # checks of what S3 lists page by page
    "names_are_those_of_the_files",
    "names_begin_with_the_prefix",
    "folders_are_those_that_hold_files",
    "sizes_of_many",
    "remove_leaves_nothing_of_a_segment",
    "remove_all_takes_folders_along",
    "a_file_is_superseded_by_the_one_that_follows",
    "many_appends_stay_in_order",
]


def maker(where: Place, kind: Callable[..., Volume] = volume_of) -> conformance.Make:
    return lambda folder="": kind(where / folder if folder else where)


@pytest.fixture
def s3_place(s3_store: S3Path, monkeypatch: pytest.MonkeyPatch) -> S3Path:
    """Return an empty prefix of a bucket. A PUT holds a lock: S3 checks and writes in one step, moto in two."""
    from moto.s3.responses import S3Response

    lock, put_object = threading.Lock(), S3Response.put_object

    def in_one_step(response: S3Response) -> Any:
        with lock:
            return put_object(response)

    monkeypatch.setattr(S3Response, "put_object", in_one_step)
    return s3_store


@pytest.mark.parametrize("check", conformance.CHECKS)
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_conforms(kind: str, check: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    conformance.CHECKS[check](maker(tmp_path if kind == "local" else request.getfixturevalue("s3_place")))


@pytest.mark.parametrize("check", LISTED)
def test_s3_conforms_page_by_page(check: str, s3_place: S3Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "4")  # S3 lists a thousand names a page
    conformance.CHECKS[check](maker(s3_place))


def test_suite_is_not_empty() -> None:
    assert len(conformance.CHECKS) >= 45


Fault = type[LocalVolume]


def fault(**methods: Any) -> Fault:
    """Return a kind of local volume with faulty methods."""
    return type("Faulty", (LocalVolume,), methods)


def growing(**methods: Any) -> Fault:
    """Return a kind of local volume whose segments have faulty methods."""
    kind = type("FaultyGrowing", (LocalGrowing,), methods)

    def start(volume: LocalVolume, name: str, head: bytes) -> Growing:
        made = LocalVolume.start(volume, name, head)
        made.__class__ = kind
        return made

    return fault(start=start)


def listed_twice(volume: LocalVolume, prefix: str = "") -> list[str]:
    return 2 * LocalVolume.names(volume, prefix)


def first_page(volume: LocalVolume, prefix: str = "") -> list[str]:
    return LocalVolume.names(volume, prefix)[:5]


def no_folder_is_an_error(volume: LocalVolume, prefix: str = "") -> list[str]:
    return [name for name in os.listdir(volume.folder) if name.startswith(prefix)]


def deep(volume: LocalVolume, prefix: str = "") -> list[str]:
    return [path.name for path in volume.folder.rglob(f"{prefix}*") if path.is_file()]


def those_beside(volume: LocalVolume, prefix: str = "") -> list[str]:
    found = [name for folder in volume.folder.parent.glob(f"{volume.folder.name}*") for name in os.listdir(folder)]
    return [name for name in found if name.startswith(prefix)]


def remembered(volume: LocalVolume, prefix: str = "") -> list[str]:
    if not hasattr(volume, "cache"):
        volume.cache = LocalVolume.names(volume)  # type: ignore[attr-defined]
    return [name for name in volume.cache if name.startswith(prefix)]  # type: ignore[attr-defined]


def not_without_a_dot(volume: LocalVolume, name: str, data: bytes) -> None:
    if "." not in name:
        raise OSError(22, "invalid name", name)
    LocalVolume.write(volume, name, data)


def only_the_beginning(volume: LocalVolume, name: str, data: bytes) -> None:
    LocalVolume.write(volume, name, data[: 2**16])


def into_what_is_there(volume: LocalVolume, name: str, data: bytes) -> None:
    (volume.folder / name).write_bytes(data)


def in_order_of_size(volume: LocalVolume, names: Sequence[str]) -> list[int]:
    return sorted(LocalVolume.sizes(volume, names))


def each_once(volume: LocalVolume, names: Sequence[str]) -> list[int]:
    return LocalVolume.sizes(volume, list(dict.fromkeys(names)))


def like_the_first(volume: LocalVolume, names: Sequence[str]) -> list[int]:
    for name in names:
        if not name.startswith(names[0].partition("-")[0]):
            raise FileNotFoundError(2, "no such object", name)
    return LocalVolume.sizes(volume, names)


def nothing_of_the_missing(volume: LocalVolume, names: Sequence[str]) -> list[int]:
    return [path.stat().st_size if (path := volume.folder / name).exists() else 0 for name in names]


def a_few_checked(volume: LocalVolume, names: Sequence[str]) -> list[int]:
    return LocalVolume.sizes(volume, names) if len(names) <= 2 else nothing_of_the_missing(volume, names)


def nameless(volume: LocalVolume, names: Sequence[str]) -> list[int]:
    try:
        return LocalVolume.sizes(volume, names)
    except FileNotFoundError:
        raise FileNotFoundError(2, "one of them is missing") from None


def as_text(volume: LocalVolume, name: str) -> bytes:
    return LocalVolume.read(volume, name).replace(b"\r\n", b"\n")


def empty_where_missing(volume: LocalVolume, name: str) -> bytes:
    return LocalVolume.read(volume, name) if (volume.folder / name).exists() else b""


def any_error(volume: LocalVolume, name: str) -> bytes:
    try:
        return LocalVolume.read(volume, name)
    except OSError:
        raise OSError(5, "something is wrong", name) from None


def without_its_end(volume: LocalVolume, name: str) -> pa.NativeFile:
    return pa.BufferReader(volume.read(name)[:-1])


def not_empty(volume: LocalVolume, name: str) -> pa.NativeFile:
    if not volume.sizes([name])[0]:
        raise OSError(22, "a map of no bytes", name)
    return LocalVolume.open(volume, name)


def opened_when_read(volume: LocalVolume, name: str) -> pa.NativeFile:
    return pa.BufferReader(empty_where_missing(volume, name))


def overwrites(volume: LocalVolume, name: str, data: bytes, half: str) -> None:
    volume.write(name, data)


def never_empty(volume: LocalVolume, name: str, data: bytes, half: str) -> None:
    LocalVolume.create(volume, name, data or b"\0", half)


def leaves_a_half_when_refused(volume: LocalVolume, name: str, data: bytes, half: str) -> None:
    try:
        LocalVolume.create(volume, name, data, half)
    except FileExistsError:
        volume.write(f".{half}.tmp", data)
        raise


def leaves_a_half(verb: str) -> Callable[..., None]:
    def does(volume: LocalVolume, name: str, data: bytes, half: str) -> None:
        getattr(LocalVolume, verb)(volume, name, data, half)
        volume.write(f".{half}.tmp", data)

    return does


def refuses_other_bytes(volume: LocalVolume, name: str, data: bytes, half: str) -> None:
    if empty_where_missing(volume, name) != data:
        LocalVolume.create(volume, name, data, half)


def refuses_equal_lengths(volume: LocalVolume, name: str, data: bytes, half: str) -> None:
    there = empty_where_missing(volume, name)
    if there and len(there) != len(data):
        volume.write(name, data)
    LocalVolume.create(volume, name, data, half)


def refuses_what_it_created(volume: LocalVolume, name: str, data: bytes, half: str) -> None:
    if (volume.folder / f".{name}.created").exists():
        raise FileExistsError(17, "taken", name)
    (volume.folder / f".{name}.created").touch()
    volume.write(name, data)


def once_for_ever(volume: LocalVolume, name: str, data: bytes, half: str) -> None:
    LocalVolume.create(volume, f".{name}.created", b"", half)
    LocalVolume.create(volume, name, data, half)


def looks_and_then_writes(volume: LocalVolume, name: str, data: bytes, half: str) -> None:
    if (volume.folder / name).exists():
        raise FileExistsError(17, "taken", name)
    time.sleep(0.02)
    volume.write(name, data)


def in_two_steps(volume: LocalVolume, name: str, data: bytes, half: str) -> None:
    with (volume.folder / name).open("xb") as file:
        file.write(data[:100])
        file.flush()
        time.sleep(0.1)
        file.write(data[100:])


def only_new_ones(volume: LocalVolume, name: str, data: bytes, half: str) -> None:
    if not volume.folder.exists():
        volume.folder.mkdir()
    LocalVolume.create(volume, name, data, half)


def over_the_beginning(volume: LocalVolume, name: str, data: bytes, half: str) -> None:
    LocalVolume.replace(volume, name, data + empty_where_missing(volume, name)[len(data) :], half)


def in_place(volume: LocalVolume, name: str, data: bytes, half: str) -> None:
    with (volume.folder / name).open("wb") as file:
        time.sleep(0.05)
        file.write(data)


def away_for_a_moment(volume: LocalVolume, name: str, data: bytes, half: str) -> None:
    volume.remove(name)
    time.sleep(0.05)
    volume.write(name, data)


def takes_others_along(volume: LocalVolume, name: str, data: bytes, half: str) -> None:
    shutil.rmtree(volume.folder, ignore_errors=True)
    volume.write(name, data)


def refuses(*args: Any) -> None:
    raise OSError(22, "not here")


def does_nothing(*args: Any) -> None:
    pass


def by_prefix(volume: LocalVolume, name: str) -> None:
    for other in volume.names(name):
        LocalVolume.remove(volume, other)


def missing_is_an_error(volume: LocalVolume, name: str) -> None:
    (volume.folder / name).unlink()


def no_segments(volume: LocalVolume, name: str) -> None:
    if not name.endswith(".log"):
        LocalVolume.remove(volume, name)


def all_segments(volume: LocalVolume, name: str) -> None:
    for other in [n for n in volume.names() if n.endswith(".log")] if name.endswith(".log") else [name]:
        LocalVolume.remove(volume, other)


def empties_first(volume: LocalVolume, name: str) -> None:
    os.truncate(volume.folder / name, 25)
    time.sleep(0.05)
    LocalVolume.remove(volume, name)


def all_of_it(volume: LocalVolume, name: str) -> None:
    shutil.rmtree(volume.folder, ignore_errors=True)


def files_only(volume: LocalVolume) -> None:
    for path in volume.folder.iterdir():
        if path.is_file():
            path.unlink()


def with_those_beside(volume: LocalVolume) -> None:
    for path in volume.folder.parent.glob(f"{volume.folder.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def missing_folder_is_an_error(volume: LocalVolume) -> None:
    shutil.rmtree(volume.folder)


def by_anything_later(volume: LocalVolume, name: str, following: str) -> bool:
    return any(other > name for other in volume.names())


def by_anything_of_another_number(volume: LocalVolume, name: str, following: str) -> bool:
    return len(volume.names("manifest-")) > 1


def as_text_without_zeros(volume: LocalVolume, name: str, following: str) -> bool:
    numbers = [str(int(n.removeprefix("manifest-").removesuffix(".json"))) for n in volume.names("manifest-")]
    return max(numbers) > str(int(name.removeprefix("manifest-").removesuffix(".json")))


def by_the_next_only(volume: LocalVolume, name: str, following: str) -> bool:
    return (volume.folder / following).exists()


def headless(volume: LocalVolume, name: str, head: bytes) -> Growing:
    return LocalVolume.start(volume, name, b"")


def hidden(volume: LocalVolume, name: str, head: bytes) -> Growing:
    return LocalVolume.start(volume, f".{name}", head)


def with_an_index(volume: LocalVolume, name: str, head: bytes) -> Growing:
    volume.write(f"{name}-index", b"")
    return LocalVolume.start(volume, name, head)


def two_names_of_one(volume: LocalVolume, name: str, head: bytes) -> Growing:
    for other in volume.names():
        os.link(volume.folder / other, volume.folder / name)
        return LocalGrowing(os.open(volume.folder / name, os.O_WRONLY | os.O_APPEND))
    return LocalVolume.start(volume, name, head)


def kept_until_later(one: LocalGrowing, data: bytes) -> None:
    LocalGrowing.append(one, getattr(one, "kept", b""))
    one.kept = data  # type: ignore[attr-defined]


def in_front(one: LocalGrowing, data: bytes) -> None:
    if len(data) < 10 and data[:1] > b"2":
        LocalGrowing.append(one, data[::-1])
    else:
        LocalGrowing.append(one, data)


def from_the_start(volume: LocalVolume, name: str, at: int) -> tuple[bytes, int]:
    return LocalVolume.grown(volume, name, 0)


def no_way_on(volume: LocalVolume, name: str, at: int) -> tuple[bytes, int]:
    return LocalVolume.grown(volume, name, at)[0], at


def one_page(volume: LocalVolume, name: str, at: int) -> tuple[bytes, int]:
    data, _ = LocalVolume.grown(volume, name, at)
    return data[:200], at + len(data[:200])


def nothing_where_missing(volume: LocalVolume, name: str, at: int) -> tuple[bytes, int]:
    return LocalVolume.grown(volume, name, at) if (volume.folder / name).exists() else (b"", at)


def nothing_new_where_missing(volume: LocalVolume, name: str, at: int) -> tuple[bytes, int]:
    return nothing_where_missing(volume, name, at) if at else LocalVolume.grown(volume, name, at)


def one_less(one: LocalGrowing, length: int) -> bool:
    return LocalGrowing.cut(one, length - 1)


def emptied(one: LocalGrowing) -> None:
    os.ftruncate(one._file, 0)
    LocalGrowing.close(one)


def refuses_to_close(one: LocalGrowing) -> None:
    LocalGrowing.close(one)
    raise OSError(9, "not open")


# (check, a faulty volume, words of the check's sentence)
FAULTS: list[tuple[str, Fault, str]] = [
    ("remote_is_true_or_false", fault(remote=None), "not True or False"),
    ("an_empty_place_has_no_names", fault(names=lambda self, prefix="": ["lock"]), "names lists something"),
    ("an_empty_place_has_no_names", fault(folders=lambda self: [""]), "folders lists something"),
    ("a_missing_folder_is_empty", fault(names=no_folder_is_an_error), "listing a missing folder failed"),
    ("names_are_those_of_the_files", fault(names=listed_twice), "names lists"),
    ("names_are_those_of_the_files", fault(names=first_page), "names lists"),
    (
        "names_begin_with_the_prefix",
        fault(names=lambda self, prefix="": LocalVolume.names(self)),
        r"names\('manifest-",
    ),
    ("files_of_other_folders_are_not_listed", fault(names=deep), "a folder inside"),
    ("files_of_other_folders_are_not_listed", fault(names=those_beside), "not its one file"),
    ("folders_are_those_that_hold_files", fault(folders=LocalVolume.names), "folders lists"),
    ("folders_are_those_that_hold_files", fault(folders=lambda self: []), "folders lists"),
    ("names_of_the_log_are_taken", fault(write=not_without_a_dot), "'lock' in '' could not be used"),
    ("names_of_the_log_are_taken", fault(remove=all_of_it), "is missing"),
    ("sizes_of_few", fault(sizes=lambda self, names: LocalVolume.sizes(self, sorted(names))), "or their order"),
    ("sizes_of_few", fault(sizes=lambda self, names: LocalVolume.sizes(self, names or [""])), "not an empty list"),
    ("sizes_of_many", fault(sizes=in_order_of_size), "or their order"),
    ("sizes_of_many", fault(sizes=each_once), "or their order"),
    ("sizes_of_many_kinds", fault(sizes=like_the_first), "files of several kinds failed"),
    ("sizes_of_a_missing_file", fault(sizes=nothing_of_the_missing), "raised no FileNotFoundError"),
    ("sizes_of_a_missing_file", fault(sizes=a_few_checked), "sizes of 6 files"),
    ("sizes_of_a_missing_file", fault(sizes=nameless), "names None"),
    ("read_gives_what_was_written", fault(read=as_text), "other bytes"),
    ("read_gives_what_was_written", fault(write=only_the_beginning), "1 MiB: read gives other bytes"),
    ("read_of_a_missing_file", fault(read=empty_where_missing), "raised no FileNotFoundError"),
    ("read_of_a_missing_file", fault(read=any_error), "raised OSError, not FileNotFoundError"),
    ("open_reads_anywhere", fault(open=without_its_end), "a wrong size"),
    ("open_of_an_empty_file", fault(open=not_empty), "open of an empty file failed"),
    ("open_of_a_missing_file", fault(open=opened_when_read), "raised no FileNotFoundError"),
    (
        "fault_keeps_the_errors_of_a_store_that_answers",
        fault(fault=lambda self, error: Away(5, str(error))),
        "does not answer",
    ),
    ("create_gives_every_content", fault(create=never_empty), "empty: the created file"),
    ("create_leaves_only_the_file", fault(create=leaves_a_half("create")), "after create there are"),
    ("create_leaves_only_the_file", fault(create=leaves_a_half_when_refused), "after a refused create"),
    ("create_refuses_a_taken_name", fault(create=overwrites), "raised no FileExistsError"),
    ("create_refuses_a_taken_name", fault(create=refuses_equal_lengths), "changed the file"),
    ("create_refuses_a_name_taken_by_write", fault(create=refuses_what_it_created), "raised no FileExistsError"),
    ("create_of_the_same_bytes_again", fault(create=refuses_other_bytes), "raised no FileExistsError"),
    ("create_of_the_same_bytes_again", fault(remote=True), "a lost answer is found out"),
    ("create_after_remove", fault(create=once_for_ever), "free again failed"),
    ("one_of_many_creates_wins", fault(create=looks_and_then_writes), "at the same time succeeded"),
    ("create_shows_whole_files_only", fault(create=in_two_steps), "being created"),
    ("write_makes_its_folder", fault(write=into_what_is_there), "write into a missing folder failed"),
    ("write_makes_its_folder", fault(replace=LocalVolume.create), "replace in a missing folder failed"),
    ("written_files_are_seen_by_others", fault(names=remembered), "does not list a written file"),
    ("sync_changes_nothing", fault(sync=refuses), "sync failed"),
    ("sync_changes_nothing", fault(sync=files_only), "after sync there are"),
    ("replace_gives_every_content", fault(replace=only_new_ones), "replace failed where a file is there"),
    ("replace_gives_every_content", fault(replace=over_the_beginning), "replace left other bytes"),
    ("replace_leaves_only_the_file", fault(replace=leaves_a_half("replace")), "after replace there are"),
    ("replace_leaves_only_the_file", fault(replace=takes_others_along), "after replace there are"),
    ("replace_shows_whole_files_only", fault(replace=in_place), "a part of a file was seen"),
    ("replace_shows_whole_files_only", fault(replace=away_for_a_moment), "missing while it was being replaced"),
    ("remove_takes_a_file_away", fault(remove=does_nothing), "after remove there are"),
    ("remove_takes_a_file_away", fault(remove=by_prefix), "after remove there are"),
    ("remove_of_a_missing_file", fault(remove=missing_is_an_error), "remove of a missing file failed"),
    ("remove_leaves_nothing_of_a_segment", fault(remove=no_segments), "there are still"),
    ("remove_leaves_nothing_of_a_segment", fault(remove=all_segments), "damaged another"),
    ("a_reader_beside_remove_sees_all_or_nothing", fault(remove=empties_first), "a part of a segment was seen"),
    ("remove_all_takes_folders_along", fault(remove_all=files_only), "after remove_all there are"),
    ("remove_all_leaves_neighbours", fault(remove_all=with_those_beside), "after remove_all of 'a'"),
    ("remove_all_of_a_missing_folder", fault(remove_all=missing_folder_is_an_error), "missing folder failed"),
    ("the_newest_file_is_not_superseded", fault(superseded=by_anything_later), "the newest file counts"),
    ("the_newest_file_is_not_superseded", fault(superseded=by_anything_of_another_number), "the newest file counts"),
    ("a_file_is_superseded_by_the_one_that_follows", fault(superseded=as_text_without_zeros), "superseded"),
    ("a_file_is_superseded_by_the_one_that_follows", fault(superseded=lambda *names: False), "does not count"),
    ("a_pruned_file_is_superseded", fault(superseded=by_the_next_only), "was removed, later ones are there"),
    ("a_segment_begins_with_its_head", fault(start=headless), "exactly its head"),
    ("a_segment_begins_with_its_head", fault(start=hidden), "cannot be read"),
    ("names_of_a_segment_are_known_to_the_log", fault(start=with_an_index), "is listed as"),
    ("appends_are_there_when_they_return", growing(append=kept_until_later), "not behind the others"),
    ("positions_chain", fault(grown=from_the_start), "behind the last position"),
    ("positions_chain", fault(grown=no_way_on), "behind the last position"),
    ("many_appends_stay_in_order", fault(grown=one_page), "many appends"),
    ("many_appends_stay_in_order", growing(append=in_front), "many appends"),
    ("segments_do_not_mix", fault(start=two_names_of_one), "other bytes than were appended to it"),
    ("grown_of_a_missing_segment", fault(grown=nothing_where_missing), "raised no FileNotFoundError"),
    ("grown_of_a_missing_segment", fault(grown=nothing_new_where_missing), "raised no FileNotFoundError"),
    ("a_reader_beside_appends_sees_a_prefix", growing(append=kept_until_later), "a reader beside appends did not see"),
    ("cut_takes_a_failed_append_back", growing(cut=lambda self, length: False), "not remote"),
    ("cut_takes_a_failed_append_back", growing(cut=lambda self, length: True), "has another end"),
    ("cut_of_nothing_keeps_all", growing(cut=one_less), "changed the segment"),
    ("close_keeps_the_segment", growing(close=emptied), "other bytes"),
    ("close_keeps_the_segment", growing(close=refuses_to_close), "close failed"),
]


@pytest.mark.parametrize(
    ("check", "kind", "said"), FAULTS, ids=[f"{check}-{n}" for n, (check, *_) in enumerate(FAULTS)]
)
def test_a_fault_is_found(tmp_path: Path, check: str, kind: Fault, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        conformance.CHECKS[check](maker(tmp_path, kind))


def test_every_check_finds_a_fault() -> None:
    assert {check for check, *_ in FAULTS} == set(conformance.CHECKS)
