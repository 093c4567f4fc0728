"""Names with accents, whichever of Unicode's forms they have on the disk."""

from pathlib import Path

import pytest
from everline.platform.names import nfc, on_disk

NFC, NFD = "K\u00e4se", "Ka\u0308se"


@pytest.mark.parametrize(("there", "asked"), [(NFC, NFD), (NFD, NFC), (NFC, NFC), (NFD, NFD)])
def test_a_path_is_found_in_the_form_that_it_has_on_the_disk(tmp_path: Path, there: str, asked: str) -> None:
    file = tmp_path / there / "plain" / f"{there}.png"
    file.parent.mkdir(parents=True)
    file.touch()
    assert on_disk(tmp_path / asked / "plain" / f"{asked}.png") == file
    assert nfc(there) == nfc(asked)


def test_the_name_as_it_was_given_comes_first(tmp_path: Path) -> None:
    for name in (NFC, NFD):
        (tmp_path / name).touch()
    assert [on_disk(tmp_path / name).name for name in (NFC, NFD)] == [NFC, NFD]


def test_what_is_missing_is_returned_as_it_is(tmp_path: Path) -> None:
    assert on_disk(tmp_path / "none" / NFC) == tmp_path / "none" / NFC
    assert on_disk(tmp_path / "a\0b") == tmp_path / "a\0b"
