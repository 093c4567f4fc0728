"""`python -m everline.pipelines.fleet.transports`: what the way to the server costs, by HTTP and by gRPC.

The same line, the same image, the same work behind it: once through the HTTP routes that everline has, once through
Ray Serve's gRPC proxy, and once by a handle, past any proxy: no other protocol could be quicker than that.
"""

import json
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import grpc
import numpy as np
import ray
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions

from ...deploy.app import bind
from ...deploy.desk import Desk
from ...deploy.server import QUIET, free_port, stop_server
from ...methods.errors import DataError
from ...platform.actor import answer, start_line
from ...platform.cluster import connect, disconnect
from ...platform.settings import Fleet
from ...platform.tracking import prepare_tracking
from ..console import json_option, launch, progress, show_table, write_json
from .client import Client
from .load import pictures_of, publish_two, write_fleet

HERE = "everline.pipelines.fleet.transports"  # as a proxy imports it; this module may be __main__
SERVICE, METHOD = "everline.Lines", "inspect"
WARM = 5  # requests of each way that do not count


@click.command()
@click.option("--method", default="padim", show_default=True, help="Of the line.")
@click.option("--size", type=click.IntRange(32, 1024), default=224, show_default=True, help="Pixels.")
@click.option("--requests", type=click.IntRange(1), default=200, show_default=True, help="Of each way, in turn.")
@json_option
def transports(method: str, size: int, requests: int, json_file: Path | None) -> None:
    """Time one image's way to a verdict: by HTTP, by gRPC, and by a handle that no proxy stands before.

    One client; nothing is learned. Ratios are to HTTP's median.
    """
    with ExitStack() as stack:
        out = Path(stack.enter_context(TemporaryDirectory(prefix="everline-")))
        fleet = write_fleet(out, 1, [method], [size])
        (name,) = fleet.lines
        data = pictures_of(fleet, [])[name]
        prepare_tracking(fleet.tracking)
        first, _ = publish_two(name, fleet, data)
        connect(own=True)
        stack.callback(disconnect)
        line, _ = start_line(name, fleet)  # a line lives as long as its handle
        answer(line.rollback.remote(first))
        stack.callback(stop_server)
        took = timed(ways(fleet, name, stack), data, requests)
    base = median(took["HTTP"])
    rows = [
        {
            "way": way,
            "p50_ms": round(median(ms), 2),
            "p99_ms": round(float(np.percentile(ms, 99)), 2),
            "ratio": round(median(ms) / base, 3),
        }
        for way, ms in took.items()
    ]
    write_json(
        {"method": method, "size": size, "requests": requests, "body_bytes": len(data[0]), "ways": rows}, json_file
    )
    if str(json_file) != "-":
        title = f"{method}, {size} pixels, bodies of {len(data[0]) / 1024:.0f} KiB, {requests} requests each"
        show_table(title, list(rows[0]), [list(row.values()) for row in rows])


def add_service(servicer: Any, server: grpc.Server) -> None:
    """For the proxy: one method, an image to JSON."""
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.inspect, request_deserializer=BytesValue.FromString, response_serializer=StringValue.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))


@serve.deployment(name="grpc-lines", max_ongoing_requests=64)
class Binary:
    """A desk, as behind the HTTP routes, and a method of gRPC's in place of these."""

    async def __init__(self, fleet: Fleet, line: str) -> None:  # type: ignore[misc]  # Serve awaits it
        self.desk, self.line = Desk(fleet), line
        await self.desk.start()

    async def inspect(self, image: BytesValue) -> StringValue:
        """An encoded image -> its verdict, as JSON."""
        found = await self.desk.inspect(self.line, image.value, _id(image.value), False, "")
        return StringValue(value=json.dumps(found))


def ways(fleet: Fleet, line: str, stack: ExitStack) -> dict[str, Callable[[bytes], float]]:
    """Starts both applications in one Serve. What is asked so of an image takes so many milliseconds."""
    http_port, grpc_port = free_port(), free_port()
    options = gRPCOptions(port=grpc_port, grpc_servicer_functions=[f"{HERE}.add_service"])
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(ProxyLocation.HeadOnly, HTTPOptions(port=http_port), grpc_options=options, logging_config=QUIET)
    serve.run(bind(fleet), name="http", route_prefix="/", logging_config=QUIET)
    kind: Any = Binary
    serve.run(kind.bind(fleet, line), name="grpc", route_prefix="/grpc", logging_config=QUIET)
    client = Client(port=http_port)
    stack.callback(client.close)
    channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{grpc_port}"))
    call = channel.unary_unary(
        f"/{SERVICE}/{METHOD}",
        request_serializer=BytesValue.SerializeToString,
        response_deserializer=StringValue.FromString,
    )
    insider: Any = ray.remote(num_cpus=0)(Insider).remote()
    stack.callback(ray.kill, insider)  # before Serve ends, which its handle would miss
    to = (("application", "grpc"),)
    return {
        "HTTP": lambda data: clocked(lambda: client.inspect(line, data, learn=False)),
        "gRPC": lambda data: clocked(lambda: json.loads(call(BytesValue(value=data), metadata=to).value)),
        "handle": lambda data: float(answer(insider.ask.remote(data))),
    }


class Insider:
    """A process of the cluster that asks the application by its handle, and looks at the clock itself."""

    def __init__(self) -> None:
        self.handle = serve.get_app_handle("grpc")

    def ask(self, data: bytes) -> float:
        """Milliseconds."""
        return clocked(lambda: json.loads(self.handle.inspect.remote(BytesValue(value=data)).result().value))


def clocked(ask: Callable[[], dict[str, Any]]) -> float:
    """Milliseconds until the verdict."""
    began = time.perf_counter()
    said = ask()
    took = (time.perf_counter() - began) * 1000
    if said["verdict"] not in ("pass", "reject"):
        raise DataError(f"an image got no verdict: {said}")
    return took


def timed(ways: dict[str, Callable[[bytes], float]], data: list[bytes], requests: int) -> dict[str, list[float]]:
    """Milliseconds of each request, the ways in turn, all with the same images and another id each."""
    took: dict[str, list[float]] = {way: [] for way in ways}
    with progress() as bars:
        bar = bars.add_task("requests", total=requests)
        for turn in range(WARM + requests):
            for n, (way, ask) in enumerate(ways.items()):
                one = data[turn % len(data)] + (turn * len(ways) + n).to_bytes(8, "big")  # an id of its own
                ms = ask(one)
                took[way] += [ms] if turn >= WARM else []
            bars.update(bar, completed=max(0, turn + 1 - WARM))
    return took


def _id(data: bytes) -> str:
    return str(int.from_bytes(data[-8:], "big"))


if __name__ == "__main__":
    launch(transports)
