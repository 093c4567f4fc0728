"""Tables on any terminal: narrow ones, those without Unicode, and names that look like markup; JSON files whole."""

import asyncio
import io
import os
import signal
from pathlib import Path

import pytest
from everline.methods.errors import StoreError
from everline.pipelines import console
from everline.pipelines.console import show_blocks, show_table, terminable, write_json
from rich.console import Console


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """What is shown on a terminal of 40 columns of ASCII."""
    shown = io.BytesIO()
    file = io.TextIOWrapper(shown, encoding="ascii", write_through=True)
    monkeypatch.setattr(console, "OUT", Console(file=file, width=40))
    return shown


def test_names_are_never_markup_and_every_terminal_can_show_them(screen: io.BytesIO) -> None:
    show_table("tiles [new]", ["[bold]"], [["[/]"], ["0.9 ± 0.1 é"], [None]])
    said = screen.getvalue().decode()
    assert "tiles [new]" in said and "[bold]" in said and "[/]" in said
    assert "0.9 +- 0.1 ?" in said and "| -" in said


def test_a_wide_table_is_cut_between_columns_and_never_within_a_figure(screen: io.BytesIO) -> None:
    heads = [f"method{n} lr={n}" for n in range(5)]
    show_blocks("wide", ["task", *heads], [["bolt", *(f"0.{n} ± 0.1" for n in range(5))]], "the note")
    lines = screen.getvalue().decode().splitlines()
    assert all(f"0.{n} +- 0.1" in "\n".join(lines) for n in range(5))
    assert max(map(len, lines)) <= 40 and sum("bolt" in line for line in lines) == 3  # two, two and one
    assert (lines[0], lines[-1]) == ("wide", "the note")


def test_columns_of_one_first_line_stay_together(screen: io.BytesIO) -> None:
    heads = ["blur\noffline", "blur\nonline", "cast\noffline", "cast\nonline"]
    show_blocks("drift", ["record", *heads], [["padim", *["0.123"] * 4]])  # there would be room for three
    tops = [line for line in screen.getvalue().decode().splitlines() if "blur" in line or "cast" in line]
    assert [(line.count("blur"), line.count("cast")) for line in tops] == [(2, 0), (0, 2)]


def test_a_table_without_rows_is_a_head(screen: io.BytesIO) -> None:
    show_blocks("empty", ["task", "padim"], [])
    assert "padim" in screen.getvalue().decode()


def test_a_json_file_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    write_json({"a": 1}, tmp_path / "deep" / "a.json")
    assert (tmp_path / "deep" / "a.json").read_text() == '{\n  "a": 1\n}\n'
    with pytest.raises(StoreError, match="cannot be written"):
        write_json({}, tmp_path / "deep" / "a.json" / "b.json")


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
def test_a_sigterm_ends_a_command_as_ctrl_c_does_even_where_that_is_ignored(ctrl_c: object) -> None:
    before = signal.signal(signal.SIGINT, ctrl_c)  # type: ignore[arg-type]
    try:
        with pytest.raises(KeyboardInterrupt), terminable():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_sigterm_cancels_what_asyncio_runs_and_strikes_no_task_at_its_work() -> None:
    seen: list[str] = []

    async def works() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append("went on")
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("was cancelled")
            raise

    async def main() -> None:
        await asyncio.create_task(works())

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), terminable():
            asyncio.run(main())
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["went on", "was cancelled"]
