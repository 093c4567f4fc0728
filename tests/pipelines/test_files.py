"""Files that commands and the files of people name: `~` is the home folder, also where no shell reads it."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from everline.methods.errors import ConfigError
from everline.pipelines.files import FilePath
from everline.pipelines.fleet.mqtt import read_broker
from everline.pipelines.fleet.opcua_file import read_plc
from everline.pipelines.main import COMMANDS, cli
from everline.pipelines.options import gather
from everline.pipelines.runs.plan import read_plan

from ..conftest import typed


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_every_option_that_names_a_file_knows_the_home_folder() -> None:
    context = click.Context(cli)
    commands = [command for name in COMMANDS if (command := cli.get_command(context, name))]
    for command in commands:
        commands += command.commands.values() if isinstance(command, click.Group) else []
    named = [option for command in commands for option in command.params if isinstance(option.type, click.Path)]
    assert len(named) > 30
    assert [option.name for option in named if not isinstance(option.type, FilePath)] == []


@pytest.mark.parametrize(
    ("given", "read"), [("~/x", "home/x"), ("./~x", "~x"), ("-", "-"), ("a~", "a~"), ("~nobody-is-called-so", None)]
)
def test_a_tilde_on_the_command_line(home: Path, given: str, read: str | None) -> None:
    @click.command()
    @click.option("--store", type=FilePath())
    def show(store: Path) -> None:
        click.echo(str(store))

    said = CliRunner().invoke(show, [f"--store={given}"])
    if read is None:
        assert isinstance(said.exception, ConfigError)
    else:
        assert said.output.strip() == read.replace("home", str(home))


def test_a_command_says_which_file_it_looked_for(home: Path) -> None:
    said = typed("lines", "--fleet=~/fleet.yaml")
    assert (said.code, f"no fleet file {home}/fleet.yaml" in said.err) == (2, True)


def test_a_tilde_in_the_files_of_the_doors_and_of_plans(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mqtt.yaml").write_text(
        "client: a\ntls: {ca: ~/ca.pem}\nlines: {m: {trigger: t, verdict: v, folder: ~/in}}\n"
    )
    broker = read_broker(tmp_path / "mqtt.yaml")
    assert (broker.tls, broker.lines["m"].folder) == ({"ca": f"{home}/ca.pem"}, home / "in")
    (tmp_path / "opcua.yaml").write_text(
        "endpoint: opc.tcp://127.0.0.1\nsecurity: {certificate: ~/c, key: ~/k, server: ~/s}\n"
        "lines: {m: {trigger: ns=3;s=I, verdict: ns=3;s=V, folder: ~/in}}\n"
    )
    plc = read_plc(tmp_path / "opcua.yaml")
    assert plc.server.security is not None
    assert plc.server.security.key == home / "k"
    assert plc.lines["m"].folder == home / "in"
    (tmp_path / "plan.yaml").write_text("methods: {efficientad: {params: {teacher: ~/t}}}\nprotocols: {offline: {}}\n")
    assert read_plan(tmp_path / "plan.yaml")["offline", "efficientad"].given == {"teacher": f"{home}/t"}
    assert gather(["teacher=~/t", "size=64"], {"device": None}) == {"teacher": f"{home}/t", "size": "64"}
