"""`everline serve`: lines and their HTTP server, until Ctrl-C."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from ...deploy.app import Access
from ...deploy.desk import RETRY_S
from ...deploy.hosts import machine_names
from ...deploy.server import check_port, is_loopback, start_server, stop_server
from ...methods.errors import ConfigError, EverlineError
from ...platform.actor import answer, start_line
from ...platform.cluster import address
from ...platform.crew import STARTS
from ...platform.settings import read_fleet
from ..console import ERR, OUT, fleet_option
from ..files import FilePath
from .lines import connected, ready_for_lines


@click.command()
@fleet_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on.")
@click.option("--tokens", type=FilePath(), help="Who may change and teach: see `everline token`.")
@click.option("--tokens-for-all", is_flag=True, help="Reading and inspecting need a token, too.")
@click.option("--open", "open_to_all", is_flag=True, help="Whoever can reach it may change everything, without token.")
@click.option("--rate", default=0.0, help="Requests a second of one token or address; 0: any number.")
@click.option(
    "--trusted-proxy", "proxies", multiple=True, metavar="ADDRESS",
    help="A proxy, or a network of them, whose X-Forwarded-For is believed; repeatable. Else the header is ignored.",
)  # fmt: skip
@click.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME",
    help="A name that clients may ask the server by, besides localhost, addresses, --host and the machine's own name; "
    "repeatable.",
)  # fmt: skip
@click.option(
    "--patience", type=click.FloatRange(0, 3600), default=RETRY_S, show_default=True,
    help="Seconds that a request waits for a line that is down or full; then it is answered 503.",
)  # fmt: skip
def serve(
    fleet_file: Path,
    host: str,
    port: int,
    tokens: Path | None,
    tokens_for_all: bool,
    open_to_all: bool,
    rate: float,
    proxies: tuple[str, ...],
    hosts: tuple[str, ...],
    patience: float,
) -> None:
    """Start the lines of a fleet and answer HTTP requests with their current versions, until Ctrl-C.

    The routes are described at /docs, for machines at /openapi.json. Images that are inspected are logged, and
    learned from unless the request says learn=false, or comes without a token where --tokens is given.
    """
    fleet = read_fleet(fleet_file)
    check_port(host, port)
    access = access_at(host, tokens, tokens_for_all, open_to_all, rate, proxies, hosts)
    ready_for_lines(fleet)
    with connected():
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):  # once connected: Ray puts its own there
            signal.signal(number, lambda *_: stop.set())
        with ThreadPoolExecutor(STARTS) as pool:
            handles = list(pool.map(lambda name: start_line(name, fleet), fleet.lines))
        started = [handle for handle, mine in handles if mine]
        if not stop.is_set():
            url = start_server(fleet, host=host, port=port, patience_s=patience, access=access)
            OUT.print(
                f"everline serves {', '.join(fleet.lines)} at {url} (routes: {url}/docs; Ray: {address()}). "
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


def access_at(
    host: str,
    tokens: Path | None,
    for_all: bool,
    open_to_all: bool,
    rate: float,
    proxies: tuple[str, ...] = (),
    hosts: tuple[str, ...] = (),
) -> Access:
    """Who may do what at an address. Raises ConfigError where others could reach it and none had to have a token."""
    if tokens is None and not open_to_all and not is_loopback(host):
        raise ConfigError(
            f"others can reach {host}, and could change lines: make a tokens file with `everline token NAME` and "
            "name it with --tokens; or say --open."
        )
    if rate < 0:
        raise ConfigError("--rate: at least 0.")
    machine = (host, *machine_names())  # a replica may be on another machine, which has another name
    file = tokens and tokens.resolve()
    access = Access(file, for_all, tokens is None, rate, proxies=proxies, hosts=hosts, machine=machine)
    access.rules()
    return access
