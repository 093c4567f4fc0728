"""What the files of the doors to a factory have in common."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from ...methods.errors import ConfigError
from ...platform.yamlfile import mapping


def text(plain: Mapping[str, Any], name: str, who: str, default: str | None = None) -> str:
    """The text under a name; without a default it may not be empty. Raises ConfigError."""
    value = plain.get(name, default)
    if not isinstance(value, str) or (default is None and not value):
        raise ConfigError(f"{who}: {name} is needed, as text." if value is None else f"{who}: {name} must be text.")
    return value


def codes(plain: Mapping[str, Any], who: str) -> dict[str, str] | None:
    """`products`: code -> task, if there are any. Codes are text: YAML would take 0417 for another number."""
    if plain.get("products") is None:
        return None
    products = mapping(plain["products"], f"{who}: products (codes in quotes)")
    for code, task in products.items():
        if not isinstance(task, str) or not code:
            raise ConfigError(f"{who}: products maps codes to names of tasks, got {code!r}: {task!r}.")
    return dict(products)


def loopback(host: str) -> bool:
    """Whether a host is this machine, whatever networks it is in."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
