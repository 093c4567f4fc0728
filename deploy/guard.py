"""Who is let in, how often, and for how long: stands between a request's envelope and the routes.

A request that may go on has its holder's name in `scope["everline.who"]`, empty where nobody was asked, in
`scope["everline.client"]` whose rate it counts for, and in `scope["everline.known"]` whether lines may learn from the
images that it brings.
"""

import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .answers import begins_in_time, problem
from .hosts import answers_to, is_own_page
from .tokens import Holder, Tokens

CLIENTS = 4096  # whose rates are remembered; the one that was longest silent is forgotten
FREE = re.compile(r"/|/docs|/health|/static/[a-z.]+")  # the pages themselves; what one shows needs a token


@dataclass(frozen=True)
class Rules:
    """What the guard goes by. Without tokens everybody may read and inspect, and change only where it is `open`."""

    tokens: Tokens | None = None
    all: bool = False  # reading and inspecting need a token, too
    open: bool = True
    rate: float = 0.0  # requests a second of one token or address, in each replica; 0: any number
    burst: int = 20  # that may come at once
    timeout_s: float = 120.0  # until an answer begins
    proxies: tuple[str, ...] = ()  # addresses and networks whose X-Forwarded-For is believed
    hosts: tuple[str, ...] = ()  # names that the server answers to, and whose pages may change something
    machine: tuple[str, ...] = ()  # names that it answers to as well; localhost and all addresses need not be named

    def asks(self, needed: str) -> bool:
        """Whether a token is asked for, of who wants to `read`, `inspect` or `change`."""
        if needed == "change":
            return self.tokens is not None or not self.open
        return self.all

    def may_teach(self, holder: Holder | None) -> bool:
        """Whether lines may learn from the images of this holder: where there are tokens, of nobody without one."""
        return self.tokens is None or (holder is not None and "inspect" in holder.may)


class Rate:
    """A bucket of `burst` tokens for each client, filled at `rate` a second."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client: what is left, since when

    def wait(self, client: str) -> float:
        """Takes one. 0.0, or the seconds after which it may be tried again."""
        now = self.clock()
        left, since = self._left.pop(client, (float(self.burst), now))
        left = min(self.burst, left + (now - since) * self.rate)
        self._left[client] = (left - 1 if left >= 1 else left, now)
        while len(self._left) > CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) / self.rate


class Guard:
    """The rules, applied to every request; those for /health and the pages' own files need only name this server."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules
        self._rate = Rate(rules.rate, rules.burst) if rules.rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        hosts = [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == b"host"]
        if not answers_to(hosts, (*self.rules.hosts, *self.rules.machine)):
            await _unknown_host(scope, hosts[0])(scope, receive, send)
            return
        if FREE.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        headers = {key.lower(): value.decode("latin-1") for key, value in scope["headers"]}
        kind, _, token = headers.get(b"authorization", "").partition(" ")
        token = token.strip() if kind.lower() == "bearer" else ""
        holder = self.rules.tokens.holder(token) if self.rules.tokens and token else None
        client = f"token {holder.name}" if holder else f"address {(scope.get('client') or ('',))[0]}"
        wait = self._rate.wait(client) if self._rate else 0.0
        if wait:
            text = f"more than {self.rules.rate:g} requests a second; try again in {math.ceil(wait)} s."
            refusal = problem(scope, 429, "too_many_requests", text, {"Retry-After": str(math.ceil(wait))})
            await refusal(scope, receive, send)
            return
        needed = right(scope)
        if self.rules.asks(needed) and holder is None:
            text = f"this needs a token that may {needed}: send `Authorization: Bearer TOKEN`"
            if self.rules.tokens is None:
                text = "nothing can be changed over HTTP here: the server was started without a tokens file"
            login = 'Bearer realm="everline"' + (', error="invalid_token"' if token else "")
            await problem(scope, 401, "no_token", f"{text}.", {"WWW-Authenticate": login})(scope, receive, send)
        elif holder and needed not in holder.may and self.rules.asks(needed):
            login = f'Bearer realm="everline", error="insufficient_scope", scope="{needed}"'
            text = f"the token of {holder.name} may not {needed}, only {', '.join(holder.may)}."
            await problem(scope, 403, "forbidden", text, {"WWW-Authenticate": login})(scope, receive, send)
        elif needed != "read" and not self._from_own_page(headers, hosts):
            await _other_site(scope, headers.get(b"origin", "another site"), hosts)(scope, receive, send)
        else:
            scope["everline.who"] = holder.name if holder else ""
            scope["everline.client"] = client
            scope["everline.known"] = self.rules.may_teach(holder)
            await self._in_time(scope, receive, send)

    def _from_own_page(self, headers: Mapping[bytes, str], hosts: list[str]) -> bool:
        return is_own_page(headers.get(b"origin", ""), headers.get(b"sec-fetch-site", ""), hosts, self.rules.hosts)

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await begins_in_time(self.app, scope, receive, send, self.rules.timeout_s):
            text = f"no answer within {self.rules.timeout_s:g} s; send the same image again under the same id."
            await problem(scope, 504, "timeout", text)(scope, receive, send)


def _unknown_host(scope: Scope, host: str) -> JSONResponse:
    text = (
        f"this server does not answer to the name {host[:80]!r}. If the name is its own, start it with --allow-host "
        "and that name without port (in a Serve config: allowed_hosts)."
    )
    return problem(scope, 421, "unknown_host", text)


def _other_site(scope: Scope, origin: str, hosts: list[str]) -> JSONResponse:
    text = (
        f"a page of {origin[:80]!r} asked for this, and only pages of {', '.join(hosts)[:80]!r} may. If the page is "
        "this server's own, behind a proxy that changes the header Host, start the server with --allow-host and the "
        "page's name (in a Serve config: allowed_hosts)."
    )
    return problem(scope, 403, "other_site", text)


def right(scope: Mapping[str, Any]) -> str:
    """What a request's sender must be allowed: read, inspect, or change, which is all that is neither."""
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return "read"
    last = scope["path"].rstrip("/").split("/")[3:]
    return "inspect" if last in (["inspect"], ["inspect", "batch"]) else "change"
