"""Which names a server answers to, and from which pages it takes requests that change something.

A browser sends the name in its address bar as Host. A page of another site can have its own name lead to this machine
(DNS rebinding), and then reads and changes everything as if it were ours; but the name that it sends is its own. An
address in place of a name cannot be made to lead elsewhere, so all addresses are answered.
"""

import re
import socket
from collections.abc import Collection, Sequence
from ipaddress import ip_address

from ..methods.errors import ConfigError

NETLOC = re.compile(r"(\[[^\[\]]+\]|[^\[\]:/@\s]+)(?::(\d{1,5}))?")  # name or address, and a port
NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
ORIGIN = re.compile(r"(https?)://(.+)")
PORTS = {"http": "80", "https": "443"}
LOCALHOST = "localhost"
OWN_PAGES = ("", "same-origin", "none")  # Sec-Fetch-Site; none: typed by a person, empty: no browser, or an old one


def answers_to(netlocs: Sequence[str], names: Collection[str]) -> bool:
    """Whether these Host headers name this server: by an address, as localhost, or by one of its names.

    A request without the header is no browser's, and is answered.
    """
    return all(_is_own(_split(netloc)[0], names) for netloc in netlocs)


def is_own_page(origin: str, site: str, netlocs: Sequence[str], allowed: Collection[str]) -> bool:
    """Whether a request comes from a page of this server, or from no page. site: its header Sec-Fetch-Site.

    A page is this server's where its origin is the Host. allowed: names whose pages, at the usual port, are the
    server's in any case: behind a proxy that sends another Host.
    """
    scheme, netloc = _origin(origin)
    page = _split(netloc, scheme)
    if page[0] in allowed and not page[1]:
        return True
    return site in OWN_PAGES and (not origin or (bool(page[0]) and [page] == [_split(one, scheme) for one in netlocs]))


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return host names as `answers_to` takes them, without those that are answered anyway.

    Raises ConfigError for what is no name, such as one with a port.
    """
    named = [name for name in names if not _is_own(_plain(name), ())]
    for name in named:
        if not NAME.fullmatch(_plain(name)):
            raise ConfigError(
                f"allowed host {name!r}: expected a name such as inspection.plant, without scheme or port."
            )
    return tuple(_plain(name) for name in named)


def machine_names() -> tuple[str, ...]:
    """Return this machine's own name, in full and up to the first dot."""
    name = _plain(socket.gethostname())
    return tuple(dict.fromkeys([name, name.partition(".")[0]])) if name else ()


def _is_own(name: str, names: Collection[str]) -> bool:
    if name == LOCALHOST or name in names:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _split(netloc: str, scheme: str = "") -> tuple[str, str]:
    """`Name:8000` -> (`name`, `8000`); without the port that is the scheme's own. An invalid one: two empty texts."""
    match = NETLOC.fullmatch(netloc)
    if match is None:
        return "", ""
    return _plain(match[1]), "" if match[2] in (None, PORTS.get(scheme)) else match[2]


def _origin(origin: str) -> tuple[str, str]:
    """Scheme and the rest of an origin; `null`, and others that are not http, have neither."""
    match = ORIGIN.fullmatch(origin)
    return (match[1], match[2]) if match else ("", "")


def _plain(name: str) -> str:
    return name.lower().removeprefix("[").removesuffix("]").removesuffix(".")
