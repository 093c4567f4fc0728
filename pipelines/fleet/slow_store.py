"""An S3 server of its own on this machine, behind a door that can be made slow: for `soak`, not for use."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ...methods.errors import ConfigError

REFUSED, DELAY_S = 0.5, 0.2  # of a spell: the share of requests that is refused, and how late the others are
SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>'
KEYS = {"AWS_ACCESS_KEY_ID": "soak", "AWS_SECRET_ACCESS_KEY": "soak", "AWS_REGION": "us-east-1"}
SERVER = """
from moto.server import ThreadedMotoServer
import logging, sys
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class Weather:
    """When the store is slow, for so many seconds each time."""

    def __init__(self, spell_s: float) -> None:
        self.spell_s = spell_s
        self.spells = self.slowed = 0
        self._until = 0.0
        self._chance = random.Random(0)  # noqa: S311 - which requests, not a secret

    def begin(self) -> None:
        """From now on, for a while."""
        self.spells += 1
        self._until = time.monotonic() + self.spell_s

    def refuses(self) -> bool:
        """Whether a request is sent away; takes its time, while the store is slow."""
        if time.monotonic() > self._until:
            return False
        self.slowed += 1
        time.sleep(DELAY_S)
        return self._chance.random() < REFUSED


@contextmanager
def bucket_of_its_own(weather: Weather) -> Iterator[str]:
    """An address s3://...; the environment leads there meanwhile. Raises ConfigError where there is no moto."""
    import boto3

    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
    assert server.stdout is not None
    port = next((int(line) for line in server.stdout if line.strip().isdigit()), 0)
    if not port:
        raise ConfigError("--s3 needs moto, of the extra dev: make setup.")
    door = ThreadingHTTPServer(("127.0.0.1", 0), _door(port, weather))
    threading.Thread(target=door.serve_forever, daemon=True).start()
    before = {name: os.environ.get(name) for name in (*KEYS, "AWS_ENDPOINT_URL")}
    os.environ.update(KEYS, AWS_ENDPOINT_URL=f"http://127.0.0.1:{door.server_port}")
    try:
        boto3.client("s3").create_bucket(Bucket="soak")
        yield "s3://soak/logs"
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        door.shutdown()
        server.kill()
        server.communicate()


def _door(port: int, weather: Weather) -> type[BaseHTTPRequestHandler]:
    """Passes requests on as they are, or answers 503 in the store's place."""

    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if weather.refuses():
                self._answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
                return
            behind = HTTPConnection("127.0.0.1", port, timeout=30)
            try:
                behind.request(self.command, self.path, body, dict(self.headers))
                reply = behind.getresponse()
                found = {name: value for name, value in reply.getheaders() if name.lower() not in DROPPED}
                length = reply.getheader("Content-Length") if self.command == "HEAD" else None
                self._answer(reply.status, found, reply.read(), length)
            except (OSError, HTTPException) as error:
                self._answer(502, {}, str(error).encode())
            finally:
                behind.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815 - so http.server wants them

        def _answer(self, status: int, headers: dict[str, str], body: bytes, length: str | None = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    return Door


DROPPED = ("content-length", "transfer-encoding", "connection", "date", "server")
