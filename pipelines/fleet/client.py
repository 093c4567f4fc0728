"""A small HTTP client of `everline serve`: what the demo measures with, and an example of how to call it."""

import json
import time
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote

from ...methods.errors import EverlineError


class Client:
    """One keep-alive connection to a server. Not for use from several threads at once."""

    def __init__(self, host: str = "127.0.0.1", port: int = 8000, timeout_s: float = 60.0, token: str = "") -> None:
        """token: as `everline token` made it; empty: none is sent."""
        self.port, self._headers = port, {"Authorization": f"Bearer {token}"} if token else {}
        self._connection = HTTPConnection(host, port, timeout=timeout_s)

    def inspect(self, line: str, data: bytes, *, learn: bool = True, id: str = "") -> dict[str, Any]:
        """An encoded image -> the server's answer, with `latency_ms` as seen from here. id: of the bytes if empty."""
        query = f"learn={str(learn).lower()}" + (f"&id={quote(id, safe='')}" if id else "")
        start = time.perf_counter()
        answer = self._ask("POST", f"/lines/{quote(line)}/inspect?{query}", data, "image/*")
        return {**answer, "latency_ms": (time.perf_counter() - start) * 1000}

    def rollback(self, line: str, version: int | None = None) -> dict[str, Any]:
        """Makes an older version current."""
        body = json.dumps({} if version is None else {"version": version}).encode()
        return self._ask("POST", f"/lines/{quote(line)}/rollback", body, "application/json")

    def feedback(self, line: str, id: str, label: str, by: str = "") -> dict[str, Any]:
        """Says of a logged image that it was `ok` or shows a `defect`."""
        body = json.dumps({"id": id, "label": label, "by": by}).encode()
        return self._ask("POST", f"/lines/{quote(line)}/feedback", body, "application/json")

    def get(self, path: str) -> Any:
        """A GET request's answer."""
        return self._ask("GET", path, None, "")

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def _ask(self, verb: str, path: str, body: bytes | None, kind: str) -> Any:
        headers = self._headers | ({"Content-Type": kind} if body is not None else {})
        self._connection.request(verb, path, body, headers)
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise EverlineError(f"{verb} {path}: {response.status}: {_message(body)}")
        return json.loads(body)


def _message(body: bytes) -> str:
    """Of an error; not each is everline's own: proxies on the way have words of theirs."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
