"""docs/reproduce.md: every command is valid, follows its paper, and is shown beside the paper's row."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from everline.methods.registry import build
from everline.pipelines import options as module
from everline.pipelines.data.datasets import read_folder
from everline.pipelines.options import gather
from everline.pipelines.protocols.protocols import PROTOCOLS
from everline.pipelines.protocols.trial import own_options
from everline.pipelines.records.published import ROWS, Figures, Published, published
from everline.pipelines.runs.evaluate import evaluate

PAGE = (Path(__file__).parents[3] / "docs" / "reproduce.md").read_text("utf-8")
LOOP = re.compile(r"for (\w+) in (.+?); do (.+); done")
ABLATIONS = ("K-NG, table 3", "K-NG, table 4", "K-NG, table 5", "K-NG, table 6", "SMCC, table III")


def expanded(command: str) -> list[list[str]]:
    """The command lines that a shell would run."""
    loop = LOOP.fullmatch(command)
    if not loop:
        return [shlex.split(command)]
    name, values, body = loop.groups()
    return [shlex.split(body.replace(f"${name}", value)) for value in values.split()]


BLOCKS = re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
TYPED = [re.sub(r"\\\n\s*", "", text) for block in BLOCKS for text in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
COMMANDS = [expanded(text.strip()) for text in TYPED]
EVERY = [pytest.param(words, id=words[-1]) for lines in COMMANDS for words in lines]


def run_of(words: list[str]) -> tuple[str, str, str, dict[str, Any], dict[str, Any]]:
    """What the record of a command would say, without reading a data set: the arguments of `published`."""
    assert words[:2] == ["everline", "evaluate"]
    place = words.index("--dataset") + 1
    known = [*words[2:place], "mvtec", *words[place + 1 :]]  # whether there is such a reader is tests/test_readers'
    given = evaluate.make_context("evaluate", known).params
    detector = build(given["method"], **gather(given["settings"], {"backbone": given["backbone"]}))
    names = {name for one in PROTOCOLS.values() for name in one.option_names()}
    options = own_options(given["protocol"], {name: given[name] for name in names})
    run = PROTOCOLS[given["protocol"]](**options)
    return words[place], given["protocol"], given["method"], detector.params, run.options


@pytest.mark.parametrize("words", EVERY)
def test_every_command_is_set_as_its_paper_has_it(words: list[str]) -> None:
    run = run_of(words)
    rows = published(*run)
    assert rows and any(not row.differences(run[3]) for row in rows), [row.differences(run[3]) for row in rows]
    assert {row.crop for row in rows} == {run[4].get("crop")}


def test_every_row_has_a_command() -> None:
    shown = [row for lines in COMMANDS for words in lines for row in published(*run_of(words))]
    wanted = [row for row in ROWS if row.source not in ABLATIONS]
    assert [row for row in wanted if row not in shown] == []


def cells(row: Published, name: str, more: str, figures: Figures) -> str:
    shots = row.options.get("shots", (None,))[0]
    what = f"{row.dataset}{more}" + (f", shots={shots}" if row.protocol == "offline" and shots else "")
    found = [
        f"{figures[metric]:.3f}" if metric in figures else "-" for metric in ("image_auroc", "pixel_auroc", "aupro")
    ]
    return f"| {name} | {what} | {' | '.join(found)} |\n"


def test_the_page_has_the_papers_means() -> None:
    for row in ROWS:
        if row.source in ABLATIONS:
            continue
        for name, mean, rows in (
            (row.label, row.mean, row.rows),
            (f"{row.label}, not learning", row.offline, row.offline_rows),
        ):
            drifts = rows if row.protocol == "drift" else {}
            for more, figures in [("", mean)] * bool(mean) + [(f", {kind}", one) for kind, one in drifts.items()]:
                assert cells(row, name, more, figures) in PAGE


@pytest.mark.slow
@pytest.mark.parametrize("words", [pytest.param(lines[0], id=lines[0][-1]) for lines in COMMANDS])
def test_commands_run_in_miniature(
    words: list[str], tmp_path: Path, write_disc: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_disc(tmp_path / "bottle", train=10, good=2, bad=2, masks=True)
    monkeypatch.setattr(module, "read_dataset", lambda name, root: [read_folder(tmp_path / "bottle")])
    small = {"wide_resnet50_2": "resnet18"}
    line = [re.sub(r"^weights=.*", "weights=none", small.get(word, word)) for word in words[2:]]
    line += ["--size", "64", "--seeds", "1"]
    line[line.index("--json") + 1] = str(tmp_path / "r.json")
    ran = CliRunner().invoke(evaluate, line)
    assert ran.exit_code == 0, ran.output
    assert "beside" in ran.stdout and "weights none" in " ".join(ran.stdout.split())
