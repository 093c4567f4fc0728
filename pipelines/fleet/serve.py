"""`everline serve`: lines and their HTTP server, until Ctrl-C."""

import signal
import threading
from pathlib import Path

import click

from ...deploy.server import check_port, start_server, stop_server
from ...methods.errors import EverlineError
from ...platform.actor import answer, start_line
from ...platform.cluster import address, connect, disconnect
from ...platform.settings import read_fleet
from ..console import ERR, OUT, fleet_option
from .lines import ready_for_lines


@click.command()
@fleet_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on.")
def serve(fleet_file: Path, host: str, port: int) -> None:
    """Start the lines of a fleet and answer HTTP requests with their current versions, until Ctrl-C.

    The routes are described at /openapi.json. Images that are inspected are logged, and learned from unless the
    request says learn=false.
    """
    fleet = read_fleet(fleet_file)
    check_port(host, port)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    ready_for_lines(fleet)
    connect()
    started = []
    try:
        for name in fleet.lines:
            handle, mine = start_line(name, fleet)
            started += [handle] if mine else []
        url = start_server(fleet, host=host, port=port)
        OUT.print(
            f"everline serves {', '.join(fleet.lines)} at {url} (routes: {url}/openapi.json; Ray: {address()}). "
            "Ctrl-C stops.",
            soft_wrap=True,
            highlight=False,
        )
        stop.wait()
        ERR.print("stopping ...")
        stop_server()
        for handle in started:
            try:
                answer(handle.close.remote())
            except EverlineError as error:
                ERR.print(str(error), markup=False)
    finally:
        disconnect()
