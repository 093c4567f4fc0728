"""The command line: help without heavy imports, one clear line for every mistake."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from everline.pipelines.main import COMMANDS, cli

from ..conftest import typed


def everline(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = "from everline.pipelines.main import main; main()"
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=cwd, check=False)


def test_help_lists_every_command_without_importing_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from everline.pipelines.main import cli; "
        "print(CliRunner().invoke(cli, ['--help']).output); assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert all(name in ran.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0
    assert "Usage:" in shown.output
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.help


def test_an_error_of_the_system_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "out.json")

    monkeypatch.setattr(cli, "main", full)
    said = typed("methods")
    assert (said.code, said.err) == (1, "error: out.json: No space left on device\n")


def test_an_unknown_command_gets_the_nearest() -> None:
    ran = everline("strem")
    assert ran.returncode == 2
    assert "did you mean stream" in ran.stderr


def test_a_missing_fleet_file_is_one_clear_error(tmp_path: Path) -> None:
    ran = everline("lines", cwd=tmp_path)
    assert ran.returncode == 2
    assert "no fleet file" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_methods_as_json() -> None:
    shown = CliRunner().invoke(cli, ["methods", "--json", "-"])
    found = json.loads(shown.output)
    assert {"coreset", "lemo", "padim"} <= set(found)
    names = [row["name"] for row in found["lemo"]["params"]]
    assert "temperature" in names


def test_methods_name_lists_its_parameters() -> None:
    shown = CliRunner().invoke(cli, ["methods", "padim"])
    assert "shrinkage" in shown.output or "floor" in shown.output


def test_methods_tell_what_a_sweep_tries() -> None:
    found = json.loads(CliRunner().invoke(cli, ["methods", "--json", "-"]).output)
    rows = {row["name"]: row for row in found["lemo"]["params"]}
    assert found["lemo"]["traits"]["memory"] == "prototypes"
    assert (rows["lr"]["search"], rows["lr"]["log"], rows["lr"]["when"]) == ([1e-6, 1e-2], True, None)
    assert rows["momentum"]["when"] == {"name": "update", "values": ["F"]}
    assert rows["seed"]["search"] == []


def test_methods_name_shows_what_a_sweep_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everline.pipelines.console.OUT.width", 300)
    shown = CliRunner().invoke(cli, ["methods", "coreset"]).output
    assert "100 to 5000, log" in shown and "auto | on | off" in shown
    assert "0 to 0.5 (where positions is auto)" in shown and "(where guard is 1 to 100)" in shown
    assert "memory" in CliRunner().invoke(cli, ["methods"]).output


def test_an_unknown_method_is_told_the_valid_ones() -> None:
    ran = everline("methods", "padmi")
    assert ran.returncode == 2
    assert "did you mean padim" in ran.stderr
