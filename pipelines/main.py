"""The command line: `everline`. A command's module is imported when it is called, so that help is quick."""

import importlib
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from ..methods.errors import ConfigError, EverlineError

COMMANDS = {  # name: (module, attribute, first line of its help)
    "bench": ("runs.benchmark", "bench", "Run many methods under many protocols, as a plan file says."),
    "compare": ("comparing.compare", "compare", "Compare result records, runs in MLflow, or versions of lines."),
    "demo": ("fleet.demo", "demo", "The main job on real images: two lines learn, are killed, versioned and served."),
    "doctor": ("doctor", "doctor", "What this machine can run, and the mend for what it cannot."),
    "down": ("fleet.up", "down", "Stop the lines of a fleet; they can be brought up again where they were."),
    "evaluate": ("runs.evaluate", "evaluate", "Run a protocol with a method on folders of images."),
    "feedback": ("fleet.lines", "feedback", "Say of a line's image that it is ok, or has a defect."),
    "lines": ("fleet.lines", "lines", "The lines of a fleet and what they know."),
    "load": ("fleet.load", "load", "Hold load on many lines over HTTP while versions move; count what failed."),
    "log": ("fleet.lines", "log", "A line's log: verify, export, speed."),
    "methods": ("methods", "methods", "The registered methods with their traits and parameters."),
    "mqtt": ("fleet.mqtt", "mqtt", "Take triggers and barcodes from an MQTT broker, and send verdicts there."),
    "opcua": (
        "fleet.opcua",
        "opcua",
        "Take triggers and barcodes from an OPC UA server, and write verdicts there.",
    ),
    "pretrain": (
        "runs.pretrain",
        "pretrain",
        "Make what a method starts from: teacher (efficientad), textures (draem).",
    ),
    "promote": ("fleet.promote", "promote", "Make a line's candidate current, if its gate lets it through."),
    "rollback": ("fleet.lines", "rollback", "Make an older version of a line current again."),
    "serve": ("fleet.serve", "serve", "Answer HTTP requests with the current versions of a fleet."),
    "speed": ("speed", "speed", "Time the metrics on large masks, beside scikit-learn."),
    "status": ("fleet.up", "status", "What runs of a fleet, and why the rest does not."),
    "store": ("fleet.lines", "store", "A fleet's store: relocate."),
    "stream": ("fleet.stream", "stream", "Feed a folder of images to a line, which inspects and learns them."),
    "sweep": ("sweeps.command", "sweep", "Try methods, memory sizes and parameters, on one machine or a Ray cluster."),
    "switch": ("fleet.lines", "switch", "Tell a line that another product comes."),
    "token": ("fleet.token", "token", "Make a token for somebody who uses the HTTP server."),
    "tune": ("sweeps.tune", "tune", "Try methods and parameters on a line's own log; recommend a fleet entry."),
    "up": ("fleet.up", "up", "Make what runs equal to what a fleet file says."),
    "watch": ("fleet.watch", "watch", "Inspect every image that appears in a folder, until Ctrl-C."),
    "versions": ("fleet.lines", "versions", "The published versions of a line."),
}


class Lazy(click.Group):
    """A group that knows its commands' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(f".{module}", __package__), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in sorted(COMMANDS)])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from ..methods.errors import UnknownName

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UnknownName.among("everline", "command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="everline")
@click.option("-v", "--verbose", is_flag=True, help="Say more on standard error.")
def cli(verbose: bool) -> None:
    """Online, continual visual inspection: detectors that learn from the line while they inspect it."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO if verbose else logging.WARNING)


def main() -> None:
    """Runs a command; everline's own errors end it with one clear line (2: the call was wrong; 1: it failed)."""
    with suppress(OSError, RuntimeError):  # a home that may not be looked into, or none
        if "RAY_ADDRESS" in os.environ and (Path.home() / ".ray" / "auth_token").is_file():
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it when it is imported, and asks no one else
    try:
        sys.exit(cli.main(standalone_mode=False))
    except click.exceptions.Abort:
        click.echo("stopped.", err=True)
        sys.exit(130)
    except KeyboardInterrupt:
        click.echo("stopped.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ConfigError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except EverlineError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be read, a name that is too long: of any command
        logging.getLogger("everline").info("where it failed", exc_info=True)
        where = "" if error.filename is None else f"{error.filename}: "
        click.echo(f"error: {where}{error.strerror or error}", err=True)
        sys.exit(1)
