"""What the documents show is run, and what they list is complete."""

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from everline.methods import params
from everline.pipelines.main import cli
from everline.platform.settings import LineSettings

from .conftest import copied_tracking, typed

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text("utf-8")) if kind == language]


PYTHON = [
    pytest.param(text, id=f"{page.name}-{number}")
    for page in PAGES
    for number, text in enumerate(blocks(page, "python"))
    if "sys.argv" not in text  # the store format's example wants a log: tests/platform runs it with one
]


@pytest.mark.parametrize("code", PYTHON)
def test_python_examples_run(code: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(code)  # a module of its own: dataclasses look themselves up
    ran = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_there_are_examples() -> None:
    assert len(PYTHON) >= 2


@pytest.fixture
def folder(tmp_path: Path, prepared_tracking: Path, ray_session: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of somebody who types what a page shows, on a cluster that runs."""
    (tmp_path / "everline-data").mkdir()
    copied_tracking(prepared_tracking, tmp_path / "everline-data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_commands(page: Path, folder: Path, parts: list[bytes]) -> list[str]:
    """Runs the page's first console block, its fleet being there, and `images`; returns the commands' names."""
    (folder / "fleet.yaml").write_text(blocks(page, "yaml")[0])
    (folder / "images").mkdir()
    for index, data in enumerate(parts):
        (folder / "images" / f"{index}.png").write_bytes(data)
    commands = [shlex.split(line[2:], comments=True) for line in blocks(page, "console")[0].splitlines()]
    for command in commands:
        said = typed(*command[1:])
        assert said.code == 0, (command, said.err)
    return [command[1] for command in commands]


def test_the_tests_that_hold_faults_are_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / "faults.md").read_text("utf-8"))
    assert len(named) > 25
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text("utf-8"), f"{file}::{test}"


@pytest.mark.slow
def test_the_readmes_commands_run(folder: Path, parts: list[bytes]) -> None:
    assert run_commands(ROOT / "README.md", folder, parts)[0] == "stream"


@pytest.mark.slow
def test_the_commands_of_comparing_run(
    folder: Path,
    parts: list[bytes],
    more_parts: list[bytes],
    write_disc: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from everline.platform.tracking import connect

    write_disc(folder / "disc", train=4, good=4, bad=4, masks=True)
    store = f"sqlite:///{folder}/everline-data/mlflow.db"  # both the fleet's and the evaluations' default
    monkeypatch.setenv("EVERLINE_TRACKING", store)
    ran = run_commands(ROOT / "docs/comparing.md", folder, parts + more_parts)
    assert ran.count("compare") == 3
    pages = [folder / name for name in ("records.html", "runs.html", "versions.html")]
    assert all("</html>" in page.read_text("utf-8") for page in pages)
    client = connect(store)
    experiment = client.get_experiment_by_name("everline/versions")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.params["version"] for run in runs) == ["1", "2"]
    assert {run.info.status for run in runs} == {"FINISHED"}


def commands(page: Path) -> list[list[str]]:
    """The everline commands of a page's console blocks, their words; those inside a shell's loop are not typed so."""
    lines = "\n".join(blocks(page, "console")).replace("\\\n", " ").splitlines()
    typed = (shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ everline"))
    return [words for words in typed if not any("$" in word for word in words)]


COMMANDS = [pytest.param(words, id=f"{page.name}-{words[1]}") for page in PAGES for words in commands(page)]


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_shown_is_one_that_everline_takes(words: list[str]) -> None:
    command, name, rest = cli, "everline", words[1:]
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(click.Context(command), rest)
        command = found
    command.make_context(name, rest)


def test_there_are_commands() -> None:
    assert {words[1] for page in PAGES for words in commands(page)} > {"stream", "evaluate", "sweep", "tune"}


def test_every_setting_of_a_line_is_documented() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    for name, _, _, spec in params.table(LineSettings):
        assert f"| `{name}` |" in page, name
        assert spec.help in page, name


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_links_to_a_section_name_one_that_is_there() -> None:
    def anchors(page: Path) -> set[str]:
        titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text("utf-8")):
            assert anchor in anchors(page.parent / target if target else page), f"{page.name}: {target}#{anchor}"


def test_every_dependency_has_its_reason() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    everything = [
        *declared["dependencies"],
        *(d for extra in declared["optional-dependencies"].values() for d in extra),
    ]
    for requirement in everything:
        name = re.split(r"[\[<>=]", requirement)[0]
        assert name in page or (name.startswith("types-") and "types-*" in page), name


def test_nothing_names_a_package_registry() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        text = (ROOT / name).read_bytes()
        assert not re.search(rb"https?://[a-z.]*(pypi|npmjs|pythonhosted)[a-z.]*/", text), name
