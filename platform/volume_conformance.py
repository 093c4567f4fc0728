"""Checks that every kind of volume must pass, as ordinary functions: a test of a volume runs each of them.

A check takes `make` (see `Make`), whose place is empty when the check begins. A check raises AssertionError with a
sentence that says what is wrong. No check can see whether bytes are durable, or make a store fail: each kind of volume
needs its own tests for that (S3 has tests/platform/test_s3.py). tests/platform/test_volume.py runs the suite.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any, Protocol

from .volume import Away, Volume


class Make(Protocol):
    """Opens one place as often as it is called, as several processes do."""

    def __call__(self, folder: str = "") -> Volume:
        """Return a new Volume object of the place, or of a folder in the place.

        The place itself is there from the start and empty; a folder in the place is not there yet.
        """


BINARY = (bytes(range(256)) + b"\r\n") * 4066  # about 1 MiB, every byte value
CONTENTS = {"empty": b"", "one byte": b"\0", "1 MiB": BINARY}
HEAD = b"EVERLOG1" + bytes(range(12))
SHARD = "shard-000000000000-00000001-0123abcd.arrow"
SEGMENT = "segment-000000000000-00000001-0123abcd.log"
SEGMENTS = [SEGMENT, "segment-000000000512-00000001-0123abcd.log", "spool-000000000000.log"]
FILES = [
    "manifest-000000000001.json",
    SHARD,
    "state-learner.safetensors",
    "state-learner.json",
    "checkpoint.json",
    "detector.json",
    "trouble.json",
    "lock",
]
FOLDERS = ["000000000999-5b0d5a0e", "000000000009", "checkpoints", "Line-1_a.b", "a..b", "x.log", "L" * 64]


def manifest(number: int) -> str:
    """Return the name of a manifest: of two writers that create the same one, the second is refused."""
    return f"manifest-{number:012d}.json"


def half(number: int) -> str:
    """Return a name for a file that is being created."""
    return f"manifest-{number:012d}-00000001-{number:08x}"


@contextmanager
def promised(sentence: str) -> Iterator[None]:
    """Turn an OSError into an AssertionError that begins with the sentence."""
    try:
        yield
    except OSError as error:
        raise AssertionError(f"{sentence}: {type(error).__name__}: {error}") from error


def refused(kind: type[OSError], what: str, call: Callable[..., Any], *args: Any) -> OSError:
    """Return the error of a call that must raise this kind of error."""
    try:
        call(*args)
    except OSError as error:
        if isinstance(error, kind):
            return error
        raise AssertionError(f"{what} raised {type(error).__name__}, not {kind.__name__}: {error}") from error
    raise AssertionError(f"{what} raised no {kind.__name__}")


def meanwhile(work: Callable[[], Any], look: Callable[[], Any]) -> None:
    """Call `look` again and again while `work` runs in another thread, and once afterwards."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        while not running.done():
            look()
        running.result()
    look()


def check_remote_is_true_or_false(make: Make) -> None:
    """Check that a volume says whether it is remote."""
    found = getattr(make(), "remote", None)
    assert isinstance(found, bool), f"remote is {found!r}, not True or False"


def check_an_empty_place_has_no_names(make: Make) -> None:
    """Check that nothing is listed where nothing was written."""
    assert make().names() == [], "names lists something in an empty place"
    assert make().folders() == [], "folders lists something in an empty place"


def check_a_missing_folder_is_empty(make: Make) -> None:
    """Check that a folder without files lists nothing and raises nothing."""
    missing = make("missing")
    with promised("listing a missing folder failed"):
        assert missing.names() == [], "names lists something in a missing folder"
        assert missing.names("manifest-") == [], "names lists something in a missing folder"
        assert missing.folders() == [], "folders lists something in a missing folder"


def check_names_are_those_of_the_files(make: Make) -> None:
    """Check that every file is listed once, by any object of the place."""
    volume, other = make(), make()
    for name in FILES:
        volume.write(name, b"x")
    for one in (volume, other):
        assert sorted(one.names()) == sorted(FILES), f"names lists {sorted(one.names())}, not {sorted(FILES)}"


def check_names_begin_with_the_prefix(make: Make) -> None:
    """Check that `names` lists the files of a prefix and no others."""
    volume = make()
    for name in FILES:
        volume.write(name, b"x")
    for prefix in ("manifest-", "shard", "state-learner.", "checkpoint.json", "manifest-000000000001.jso", "nothing"):
        found, wanted = sorted(volume.names(prefix)), sorted(name for name in FILES if name.startswith(prefix))
        assert found == wanted, f"names({prefix!r}) lists {found}, not {wanted}"


def check_files_of_other_folders_are_not_listed(make: Make) -> None:
    """Check that a folder lists its own files, and no file of a folder inside or beside."""
    inside, longer = make("a"), make("ab")
    make().write("top", b"1")
    inside.write("one", b"22")
    longer.write("two", b"333")
    assert not {"one", "two"} & set(make().names()), "names lists the files of a folder inside"
    assert not [name for name in make().names() if "/" in name], "names lists a path"
    assert inside.names() == ["one"], f"folder 'a' lists {inside.names()}, not its one file (folder 'ab' is beside it)"
    assert longer.names() == ["two"], f"folder 'ab' lists {longer.names()}, not its one file"


def check_folders_are_those_that_hold_files(make: Make) -> None:
    """Check that `folders` lists each folder that holds a file, and no file."""
    volume = make()
    volume.write("file.json", b"x")
    for name in FOLDERS:
        make(name).write("checkpoint.json", b"x")
        make(name).write("state-learner.json", b"x")
    assert sorted(volume.folders()) == sorted(FOLDERS), f"folders lists {sorted(volume.folders())}"
    assert make(FOLDERS[0]).folders() == [], "folders lists something in a folder that holds files only"


def check_names_of_the_log_are_taken(make: Make) -> None:
    """Check that files and folders can have the names that logs, checkpoints and lines give them."""
    names = [*(("", name) for name in FILES), *((folder, "state-learner.json") for folder in FOLDERS)]
    for folder, name in names:
        data = f"{folder} {name}".encode()
        with promised(f"{name!r} in {folder!r} could not be used"):
            make(folder).write(name, data)
            assert make(folder).sizes([name]) == [len(data)], f"{name!r} in {folder!r} has a wrong size"
    for folder, name in names:
        with promised(f"{name!r} in {folder!r} is missing"):
            found = make(folder).read(name)
        assert found == f"{folder} {name}".encode(), f"{name!r} in {folder!r} holds other bytes than were written"
        make(folder).remove(name)
        assert name not in make(folder).names(), f"{name!r} in {folder!r} could not be removed"


def check_sizes_of_few(make: Make) -> None:
    """Check the sizes of no file, of one and of two, in the order in which they were asked for."""
    volume = make()
    for name, length in (("state-b.json", 0), ("state-a.json", 1), ("state-c.json", len(BINARY))):
        volume.write(name, BINARY[:length])
    assert volume.sizes([]) == [], "sizes of no file are not an empty list"
    assert volume.sizes(["state-c.json"]) == [len(BINARY)], "the size of one file is wrong"
    assert volume.sizes(["state-b.json", "state-a.json"]) == [0, 1], "the sizes of two files are wrong, or their order"


def check_sizes_of_many(make: Make) -> None:
    """Check the sizes of many files of one kind, in the order in which they were asked for."""
    volume = make()
    wanted = {f"shard-{n:012d}-00000001-0123abcd.arrow": n * n % 7 for n in range(9)}
    for name, length in wanted.items():
        volume.write(name, bytes(length))
    names = [*reversed(wanted), *wanted]
    assert make().sizes(names) == [wanted[name] for name in names], "the sizes of many files are wrong, or their order"


def check_sizes_of_many_kinds(make: Make) -> None:
    """Check the sizes of many files whose names have nothing in common."""
    volume = make()
    for number, name in enumerate(FILES):
        volume.write(name, bytes(number))
    with promised("sizes of files of several kinds failed"):
        assert volume.sizes(FILES) == list(range(len(FILES))), "the sizes of files of several kinds are wrong"


def check_sizes_of_a_missing_file(make: Make) -> None:
    """Check that one missing file among few or many raises FileNotFoundError, which names the file."""
    volume = make()
    there = [f"shard-{n:012d}-00000001-0123abcd.arrow" for n in range(5)]
    for name in there:
        volume.write(name, b"x")
    missing = "shard-000000000009-00000001-0123abcd.arrow"
    for names in ([missing], [there[0], missing], [*there, missing]):
        error = refused(FileNotFoundError, f"sizes of {len(names)} files, one missing,", volume.sizes, names)
        assert str(error.filename).endswith(missing), f"the error of sizes names {error.filename}, not {missing}"


def check_read_gives_what_was_written(make: Make) -> None:
    """Check contents of 0, 1 and about 1 MiB bytes, by `write` and `read`."""
    volume, other = make(), make()
    for number, (what, data) in enumerate(CONTENTS.items()):
        name = f"shard-{number:012d}-00000001-0123abcd.arrow"
        volume.write(name, data)
        volume.sync()
        assert other.read(name) == data, f"{what}: read gives other bytes than were written"
        assert other.sizes([name]) == [len(data)], f"{what}: the size is not the number of bytes written"


def check_read_of_a_missing_file(make: Make) -> None:
    """Check that `read` raises FileNotFoundError, which names the file, also where there is no folder."""
    for folder in ("", "missing"):
        error = refused(FileNotFoundError, "read of a missing file", make(folder).read, "trouble.json")
        assert str(error.filename).endswith("trouble.json"), f"the error of read names {error.filename}, not the file"


def check_open_reads_anywhere(make: Make) -> None:
    """Check that an opened file has a size and gives any part of itself, in any order."""
    make().write(SHARD, BINARY)
    with make().open(SHARD) as file:
        assert file.size() == len(BINARY), "an opened file says a wrong size"
        for at, count in ((len(BINARY) - 6, 6), (0, 8), (512 * 1024, 4096), (3, 1)):
            assert file.read_at(count, at) == BINARY[at : at + count], f"read_at({count}, {at}) gives other bytes"
            file.seek(at)
            assert file.read(count) == BINARY[at : at + count], f"read({count}) after seek({at}) gives other bytes"
        file.seek(0)
        assert file.read() == BINARY, "reading an opened file from end to end gives other bytes"
        assert file.read(1) == b"", "reading at the end of an opened file gives bytes"


def check_open_of_an_empty_file(make: Make) -> None:
    """Check that a file of no bytes can be opened."""
    make().write("empty.arrow", b"")
    with promised("open of an empty file failed"), make().open("empty.arrow") as file:
        assert (file.size(), file.read()) == (0, b""), "an empty file holds something when opened"


def check_open_of_a_missing_file(make: Make) -> None:
    """Check that `open` raises FileNotFoundError at once."""
    refused(FileNotFoundError, "open of a missing file", make().open, SHARD)


def check_fault_keeps_the_errors_of_a_store_that_answers(make: Make) -> None:
    """Check that `fault` takes a missing file for no outage."""
    found = make().fault(FileNotFoundError(2, "no such file", SHARD))
    assert isinstance(found, OSError), f"fault gives {type(found).__name__}, not an OSError"
    assert not isinstance(found, Away), "fault takes a missing file for a store that does not answer"


def check_create_gives_every_content(make: Make) -> None:
    """Check contents of 0, 1 and about 1 MiB bytes, by `create`."""
    for number, (what, data) in enumerate(CONTENTS.items()):
        make().create(manifest(number), data, half(number))
        assert make().read(manifest(number)) == data, f"{what}: the created file holds other bytes"


def check_create_leaves_only_the_file(make: Make) -> None:
    """Check that neither a creation nor a refusal leaves an unfinished file."""
    volume = make()
    volume.create(manifest(1), b"1", half(1))
    assert make().names() == [manifest(1)], f"after create there are {make().names()}"
    refused(FileExistsError, "create of a taken name", volume.create, manifest(1), b"another", half(2))
    assert make().names() == [manifest(1)], f"after a refused create there are {make().names()}"


def check_create_refuses_a_taken_name(make: Make) -> None:
    """Check that a created file stays, however often others create the same name."""
    make().create(manifest(1), b"first", half(1))
    for number, data in enumerate((b"second", b"", b"firsT", BINARY), 2):
        refused(FileExistsError, "create of a taken name", make().create, manifest(1), data, half(number))
        assert make().read(manifest(1)) == b"first", "a refused create changed the file that was there"


def check_create_refuses_a_name_taken_by_write(make: Make) -> None:
    """Check that `create` refuses the name of a file that `write` or `replace` made."""
    make().write("a.json", b"written")
    make().replace("b.json", b"replaced", half(1))
    for number, (name, data) in enumerate((("a.json", b"written"), ("b.json", b"replaced")), 2):
        refused(FileExistsError, "create of a taken name", make().create, name, b"other", half(number))
        assert make().read(name) == data, "a refused create changed the file that was there"


def check_create_of_the_same_bytes_again(make: Make) -> None:
    """Check that the same call succeeds again where `remote`, since the first answer may be lost; else is refused."""
    volume = make()
    volume.create(manifest(1), b"mine", half(1))
    if volume.remote:
        with promised("create of the same bytes again, by which a lost answer is found out, failed"):
            volume.create(manifest(1), b"mine", half(1))
    else:
        refused(FileExistsError, "create of a taken name", volume.create, manifest(1), b"mine", half(2))
    assert make().read(manifest(1)) == b"mine", "create of the same bytes again changed the file"


def check_create_after_remove(make: Make) -> None:
    """Check that a name is free again once its file was removed."""
    make().create(manifest(1), b"old", half(1))
    make().remove(manifest(1))
    with promised("create of a name that is free again failed"):
        make().create(manifest(1), b"new", half(2))
    assert make().read(manifest(1)) == b"new", "a removed file came back"


def check_one_of_many_creates_wins(make: Make) -> None:
    """Check that one of several creations at the same time succeeds, and that the file holds its bytes."""
    rivals = 3
    for number in range(6):
        name, ready = manifest(number), Barrier(rivals)

        def create(rival: int, name: str = name, ready: Barrier = ready, number: int = number) -> bool:
            volume = make()
            ready.wait(60)
            try:
                volume.create(name, bytes([rival]) * 1000, half(10 * number + rival))
            except FileExistsError:
                return False
            return True

        with ThreadPoolExecutor(rivals) as pool:
            won = [rival for rival, first in enumerate(pool.map(create, range(rivals))) if first]
        assert len(won) == 1, f"{len(won)} of {rivals} creations of one name at the same time succeeded"
        assert make().read(name) == bytes([won[0]]) * 1000, "the file holds the bytes of a refused creation"


def check_create_shows_whole_files_only(make: Make) -> None:
    """Check that nobody sees a part of a file that is being created."""
    other = make()

    def look() -> None:
        for name in other.names("manifest-"):
            assert other.read(name) == BINARY, "a part of a file was seen while the file was being created"

    def work() -> None:
        volume = make()
        for number in range(4):
            volume.create(manifest(number), BINARY, half(number))

    meanwhile(work, look)
    assert len(other.names("manifest-")) == 4, "a created file is not listed"


def check_write_makes_its_folder(make: Make) -> None:
    """Check that `write` and `replace` make a missing folder: checkpoints need that."""
    with promised("write into a missing folder failed"):
        make("checkpoints").write("state-learner.json", b"1")
        make("checkpoints").sync()
    with promised("replace in a missing folder failed"):
        make("current").replace("trouble.json", b"2", "trouble-0123")
    assert make("checkpoints").read("state-learner.json") == b"1", "a file in a new folder holds other bytes"
    assert make("current").read("trouble.json") == b"2", "a file in a new folder holds other bytes"


def check_written_files_are_seen_by_others(make: Make) -> None:
    """Check that an object opened earlier lists and reads what another one wrote and synced."""
    other = make()
    other.names()
    volume = make()
    volume.write(SHARD, b"shard")
    volume.sync()
    assert other.names() == [SHARD], "another object of the place does not list a written file"
    assert other.read(SHARD) == b"shard", "another object of the place reads other bytes"


def check_sync_changes_nothing(make: Make) -> None:
    """Check that `sync` succeeds, in an empty place too, and leaves files as they are."""
    volume = make()
    with promised("sync failed"):
        volume.sync()
        volume.write(SHARD, b"shard")
        volume.sync()
        volume.sync()
    assert make().names() == [SHARD], f"after sync there are {make().names()}"
    assert make().read(SHARD) == b"shard", "sync changed a file"


def check_replace_gives_every_content(make: Make) -> None:
    """Check contents of 0, 1 and about 1 MiB bytes, by `replace`, of a new file and of one that is there."""
    order = ["one byte", "1 MiB", "empty", "1 MiB", "one byte"]
    for number, what in enumerate(order):
        with promised("replace failed" + (" where a file is there" if number else "")):
            make().replace("trouble.json", CONTENTS[what], f"trouble-{number}")
        assert make().read("trouble.json") == CONTENTS[what], f"{what}: replace left other bytes"
        assert make().sizes(["trouble.json"]) == [len(CONTENTS[what])], f"{what}: replace left a wrong size"


def check_replace_leaves_only_the_file(make: Make) -> None:
    """Check that `replace` leaves no unfinished file and touches no other."""
    make().write("other.json", b"other")
    for number in range(3):
        make().replace("trouble.json", bytes([number]), f"trouble-{number}")
        found = sorted(make().names())
        assert found == ["other.json", "trouble.json"], f"after replace there are {found}"
    assert make().read("other.json") == b"other", "replace changed another file"


def check_replace_shows_whole_files_only(make: Make) -> None:
    """Check that others always see the file, with its old bytes or its new ones."""
    other, texts = make(), [b"old", BINARY, b"newer"]
    make().replace("trouble.json", texts[0], "trouble-0")

    def look() -> None:
        with promised("a file was missing while it was being replaced"):
            assert other.read("trouble.json") in texts, "a part of a file was seen while it was being replaced"

    def work() -> None:
        volume = make()
        for number in range(1, 9):
            volume.replace("trouble.json", texts[number % 3], f"trouble-{number}")

    meanwhile(work, look)


def check_remove_takes_a_file_away(make: Make) -> None:
    """Check that a removed file is gone for all, and no other file is."""
    for name in (SHARD, f"{SHARD}x", "shard"):
        make().write(name, b"x")
    make().remove(SHARD)
    assert sorted(make().names()) == ["shard", f"{SHARD}x"], f"after remove there are {sorted(make().names())}"
    refused(FileNotFoundError, "read of a removed file", make().read, SHARD)
    refused(FileNotFoundError, "sizes of a removed file", make().sizes, [SHARD])


def check_remove_of_a_missing_file(make: Make) -> None:
    """Check that removing a missing file or segment is no error, nor is removing from a missing folder."""
    with promised("remove of a missing file failed"):
        make().remove(SHARD)
        make().remove(SEGMENT)
        make("missing").remove("trouble.json")
        make().write(SHARD, b"x")
        make().remove(SHARD)
        make().remove(SHARD)


def check_remove_leaves_nothing_of_a_segment(make: Make) -> None:
    """Check that a segment is gone with all its appends, and other segments are whole."""
    volume = make()
    for name in SEGMENTS:
        growing = volume.start(name, HEAD)
        for number in range(5):
            growing.append(bytes([number]))
        growing.close()
    make().remove(SEGMENT)
    left = make().names(SEGMENT)
    assert not left, f"of a removed segment there are still {left}"
    refused(FileNotFoundError, "grown of a removed segment", make().grown, SEGMENT, 0)
    for name in SEGMENTS[1:]:
        with promised("removing a segment damaged another"):
            assert make().grown(name, 0)[0] == HEAD + bytes(range(5)), "removing a segment changed another"


def check_a_reader_beside_remove_sees_all_or_nothing(make: Make) -> None:
    """Check that a reader of a segment that is being removed gets the whole segment or FileNotFoundError."""
    volume, other, whole = make(), make(), HEAD + bytes(range(12))
    for name in SEGMENTS:
        growing = volume.start(name, HEAD)
        for number in range(12):
            growing.append(bytes([number]))
        growing.close()

    def look() -> None:
        for name in SEGMENTS:
            try:
                found = other.grown(name, 0)[0]
            except FileNotFoundError:
                continue
            assert found == whole, "a part of a segment was seen while the segment was being removed"

    def work() -> None:
        for name in SEGMENTS:
            volume.remove(name)

    meanwhile(work, look)


def check_remove_all_takes_folders_along(make: Make) -> None:
    """Check that nothing is left of a folder, its files, its segments and the folders inside."""
    make().write(SHARD, b"x")
    make().start(SEGMENT, HEAD).close()
    for name in FOLDERS:
        make(name).write("checkpoint.json", b"x")
    make().remove_all()
    assert make().names() == [], f"after remove_all there are {make().names()}"
    assert make().folders() == [], f"after remove_all there are the folders {make().folders()}"
    for name in FOLDERS:
        assert make(name).names() == [], f"after remove_all folder {name!r} still holds {make(name).names()}"
        refused(FileNotFoundError, "read after remove_all", make(name).read, "checkpoint.json")


def check_remove_all_leaves_neighbours(make: Make) -> None:
    """Check that `remove_all` leaves folders and files whose names begin with the folder's name."""
    for name in ("a", "ab", "a.b"):
        make(name).write("checkpoint.json", name.encode())
    make().write("a.json", b"file")
    make("a").remove_all()
    assert sorted(make().folders()) == ["a.b", "ab"], f"after remove_all of 'a' there are {sorted(make().folders())}"
    with promised("remove_all of 'a' removed something beside 'a'"):
        assert make("ab").read("checkpoint.json") == b"ab", "remove_all of 'a' changed folder 'ab'"
        assert make("a.b").read("checkpoint.json") == b"a.b", "remove_all of 'a' changed folder 'a.b'"
        assert make().read("a.json") == b"file", "remove_all of 'a' changed a file beside 'a'"


def check_remove_all_of_a_missing_folder(make: Make) -> None:
    """Check that removing a missing folder is no error, and that the name of a removed one can be used again."""
    with promised("remove_all of a missing folder failed"):
        make("a").remove_all()
        make("a").write("checkpoint.json", b"1")
        make("a").remove_all()
        make("a").remove_all()
        make("a").write("checkpoint.json", b"2")
    assert make("a").read("checkpoint.json") == b"2", "a folder that was made again holds other bytes"


def check_the_newest_file_is_not_superseded(make: Make) -> None:
    """Check that older files and files of another kind supersede nothing."""
    for name in (SHARD, "lock", "trouble.json", "a-000000000009.json"):
        make().write(name, b"x")
    make().start(SEGMENT, HEAD).close()
    for number in range(8, 11):
        make().create(manifest(number), b"x", half(number))
        found = make().superseded(manifest(number), manifest(number + 1))
        assert not found, f"the newest file counts as superseded, number {number}"


def check_a_file_is_superseded_by_the_one_that_follows(make: Make) -> None:
    """Check that an object opened earlier sees the next file as soon as another object has created that file."""
    old = make()
    for number in range(8, 11):
        make().create(manifest(number), b"x", half(number))
    for number in range(10, 13):
        assert not old.superseded(manifest(number), manifest(number + 1)), "the newest file counts as superseded"
        make().create(manifest(number + 1), b"x", half(number + 1))
        for earlier in range(8, number + 1):
            found = old.superseded(manifest(earlier), manifest(earlier + 1))
            assert found, f"file {earlier} does not count as superseded, and file {earlier + 1} is there"


def check_a_pruned_file_is_superseded(make: Make) -> None:
    """Check that a file counts as superseded when it and the next one were removed, and later ones are there."""
    for number in range(1, 7):
        make().create(manifest(number), b"x", half(number))
    for number in range(1, 4):
        make().remove(manifest(number))
    for number in range(1, 4):
        found = make().superseded(manifest(number), manifest(number + 1))
        assert found, f"file {number} was removed, later ones are there, and it does not count as superseded"


def check_a_segment_begins_with_its_head(make: Make) -> None:
    """Check that a new segment holds its head and is seen by others, while it is still open."""
    growing = make().start(SEGMENT, HEAD)
    with promised("a new segment cannot be read"):
        assert make().grown(SEGMENT, 0)[0] == HEAD, "a new segment does not hold exactly its head"
    assert make().names(SEGMENT), "a new segment is not listed"
    growing.close()
    assert make().grown(SEGMENT, 0)[0] == HEAD, "closing a new segment changed it"


def check_names_of_a_segment_are_known_to_the_log(make: Make) -> None:
    """Check that a segment is listed under its name, or as parts: its name, '.', 12 digits. manifest.py reads both."""
    growing = make().start(SEGMENT, HEAD)
    for number in range(3):
        growing.append(bytes([number]))
    growing.close()
    strange = [name for name in make().names() if not re.fullmatch(re.escape(SEGMENT) + r"(\.[0-9]{12})?", name)]
    assert make().names(), "a segment is not listed"
    assert not strange, f"a segment is listed as {strange}"
    assert make().folders() == [], f"a segment is listed as the folders {make().folders()}"


def check_appends_are_there_when_they_return(make: Make) -> None:
    """Check that others see each append as soon as it returns, of 0, 1 and about 1 MiB bytes."""
    growing, other, wanted = make().start(SEGMENT, HEAD), make(), HEAD
    for data in (b"\0", BINARY, b"", b"end"):
        growing.append(data)
        wanted += data
        assert other.grown(SEGMENT, 0)[0] == wanted, f"an append of {len(data)} bytes is not behind the others"
    growing.close()


def check_positions_chain(make: Make) -> None:
    """Check that `grown` gives what came behind a position, then the next position, and nothing twice."""
    words = [b"one", b"two", b"three"]
    growing, other = make().start(SEGMENT, HEAD), make()
    data, end = other.grown(SEGMENT, 0)
    assert data == HEAD, "a segment does not begin with its head"
    ends = [end]
    for word in words:
        growing.append(word)
        data, end = other.grown(SEGMENT, end)
        assert data == word, f"behind the last position there is {data!r}, not the {word!r} that was appended since"
        assert other.grown(SEGMENT, end) == (b"", end), "behind the end of a segment there is something"
        ends.append(end)
    growing.close()
    for number, start in enumerate(ends):
        wanted = b"".join(words[number:]), end
        assert make().grown(SEGMENT, start) == wanted, f"position {start} gives other bytes later, or another end"


def check_many_appends_stay_in_order(make: Make) -> None:
    """Check that a segment of many appends is read in order, whole and from the middle."""
    growing, middle = make().start(SEGMENT, HEAD), 0
    words = [f"{number}:".encode() + bytes([number]) * (number % 13) for number in range(30)]
    for number, word in enumerate(words):
        growing.append(word)
        if number == 9:
            middle = make().grown(SEGMENT, 0)[1]
    growing.close()
    whole, end = make().grown(SEGMENT, 0)
    assert whole == HEAD + b"".join(words), "many appends are read in another order, or not all of them"
    assert make().grown(SEGMENT, middle) == (b"".join(words[10:]), end), "reading on from the middle gives other bytes"


def check_segments_do_not_mix(make: Make) -> None:
    """Check that segments which are written at the same time keep to themselves."""
    growing = {name: make().start(name, HEAD) for name in SEGMENTS}
    for number in range(4):
        for name, one in growing.items():
            one.append(f"{name} {number}".encode())
    for name, one in growing.items():
        one.close()
        wanted = HEAD + b"".join(f"{name} {number}".encode() for number in range(4))
        assert make().grown(name, 0)[0] == wanted, f"segment {name} holds other bytes than were appended to it"


def check_grown_of_a_missing_segment(make: Make) -> None:
    """Check that `grown` raises FileNotFoundError, which names the segment, from 0 and from a later position."""
    growing = make().start(SEGMENTS[1], HEAD)
    growing.append(b"more")
    growing.close()
    at = make().grown(SEGMENTS[1], 0)[1]
    make().remove(SEGMENTS[1])
    for name, start in ((SEGMENT, 0), (SEGMENTS[1], 0), (SEGMENTS[1], at)):
        error = refused(FileNotFoundError, "grown of a missing segment", make().grown, name, start)
        assert str(error.filename).endswith(name), f"the error of grown names {error.filename}, not the segment"


def check_a_reader_beside_appends_sees_a_prefix(make: Make) -> None:
    """Check that a reader which reads on while a segment grows sees all that was acknowledged, in order."""
    words = [f"{number}:".encode() * 50 for number in range(25)]
    growing, other = make().start(SEGMENT, HEAD), make()
    total, acknowledged, seen, at = HEAD + b"".join(words), len(HEAD), b"", 0

    def look() -> None:
        nonlocal seen, at
        least = acknowledged
        data, at = other.grown(SEGMENT, at)
        seen += data
        assert total.startswith(seen), "a reader beside appends saw other bytes than were appended"
        assert len(seen) >= least, "a reader beside appends did not see an acknowledged append"

    def work() -> None:
        nonlocal acknowledged
        for word in words:
            growing.append(word)
            acknowledged += len(word)

    meanwhile(work, look)
    assert seen == total, "a reader beside appends did not see all of them in the end"
    growing.close()


def check_cut_takes_a_failed_append_back(make: Make) -> None:
    """Check that a segment ends at the given length after `cut`, and grows from there. False needs `remote`."""
    volume = make()
    growing = volume.start(SEGMENT, HEAD)
    growing.append(b"kept")
    growing.append(b"not acknowledged")
    if growing.cut(len(HEAD + b"kept")):
        assert make().grown(SEGMENT, 0)[0] == HEAD + b"kept", "cut returned True, and the segment has another end"
        growing.append(b"next")
        assert make().grown(SEGMENT, 0)[0] == HEAD + b"keptnext", "an append after cut is not behind what was kept"
    else:
        assert volume.remote, "cut returned False, and the volume is not remote"
    growing.close()


def check_cut_of_nothing_keeps_all(make: Make) -> None:
    """Check that `cut` at the very end, after an append that wrote nothing, leaves the segment as it is."""
    growing = make().start(SEGMENT, HEAD)
    growing.append(b"kept")
    growing.cut(len(HEAD + b"kept"))
    assert make().grown(SEGMENT, 0)[0] == HEAD + b"kept", "cut at the end of a segment changed the segment"
    growing.close()


def check_close_keeps_the_segment(make: Make) -> None:
    """Check that `close` raises nothing and leaves what was appended."""
    growing = make().start(SEGMENT, HEAD)
    growing.append(b"kept")
    with promised("close failed"):
        growing.close()
    with promised("a closed segment cannot be read"):
        assert make().grown(SEGMENT, 0)[0] == HEAD + b"kept", "a closed segment holds other bytes than were appended"


CHECKS: dict[str, Callable[[Make], None]] = {
    name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")
}
