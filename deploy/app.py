"""The Ray Serve application: one deployment that holds every line of a fleet.

In a Serve config file: `import_path: everline.deploy.app:build` with `args: {fleet: PATH}` (see serve.yaml).
"""

from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from ..methods.errors import ConfigError
from ..platform import metrics
from ..platform.settings import Fleet, parse_fleet, read_fleet
from .desk import RETRY_S, Desk
from .guard import Rules
from .hosts import checked_names, machine_names
from .tokens import Tokens
from .web import BODY_LIMIT, application

MIB = 2**20


class Args(BaseModel):
    """What a Serve config may say. `fleet`: a fleet file's path, or what would stand in one.

    tokens: path of the tokens file; without one nothing can be changed unless `open`. tokens_for_all: reading and
    inspecting need one, too. rate: requests a second of a token or address (0: any number), `burst` at once.
    timeout_s: until an answer begins. patience_s: how long a request waits for a line that is down or has no room.
    trusted_proxies: addresses and networks whose X-Forwarded-For tells a client's address; else the header is ignored.
    allowed_hosts: names that clients may ask the server by, besides localhost, addresses, and the machine's own name.
    """

    model_config = ConfigDict(extra="forbid")
    fleet: str | dict[str, Any]
    replicas: int = Field(default=1, ge=1, le=256)
    body_limit_mib: int = Field(default=BODY_LIMIT // MIB, ge=1, le=1024)
    poll_s: float = Field(default=0.5, ge=0.05, le=60)
    tokens: str | None = None
    tokens_for_all: bool = False
    open: bool = False
    rate: float = Field(default=0, ge=0, le=1e6)
    burst: int = Field(default=20, ge=1, le=10_000)
    timeout_s: float = Field(default=120, ge=1, le=3600)
    patience_s: float = Field(default=RETRY_S, ge=0, le=3600)
    trusted_proxies: list[str] = []
    allowed_hosts: list[str] = []


@dataclass(frozen=True)
class Access:
    """As `Args` has them; only a replica, which may be on another machine, opens the file."""

    tokens: Path | None = None
    all: bool = False
    open: bool = False
    rate: float = 0.0
    burst: int = 20
    timeout_s: float = 120.0
    proxies: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    machine: tuple[str, ...] = ()

    def rules(self) -> Rules:
        """Read the tokens and check the rest. Raises ConfigError."""
        if self.all and self.tokens is None:
            raise ConfigError("tokens for all, but no tokens file: name one (`everline token NAME` makes it).")
        for proxy in self.proxies:
            _check_network(proxy)
        tokens = Tokens(self.tokens) if self.tokens else None
        hosts, machine = checked_names(self.hosts), checked_names((*self.machine, *machine_names()))
        return Rules(tokens, self.all, self.open, self.rate, self.burst, self.timeout_s, self.proxies, hosts, machine)


def _check_network(text: str) -> None:
    """Raise ConfigError for what is neither an address nor a network."""
    try:
        ip_network(text)
    except ValueError as error:
        raise ConfigError(
            f"trusted proxy {text!r}: expected an address such as 10.0.0.7 or a network such as 10.0.0.0/24 ({error})."
        ) from error


def build(args: Args) -> Application:
    """The application of a fleet; relative paths in an inline fleet start at the current folder.

    Raises ConfigError, UnknownName.
    """
    tokens = Path(args.tokens).resolve() if args.tokens else None
    access = Access(
        tokens,
        args.tokens_for_all,
        args.open,
        args.rate,
        args.burst,
        args.timeout_s,
        tuple(args.trusted_proxies),
        tuple(args.allowed_hosts),
    )
    fleet = parse_fleet(args.fleet, Path.cwd()) if isinstance(args.fleet, dict) else read_fleet(Path(args.fleet))
    return bind(
        fleet,
        replicas=args.replicas,
        body_limit=args.body_limit_mib * MIB,
        poll_s=args.poll_s,
        patience_s=args.patience_s,
        access=access,
    )


def bind(
    fleet: Fleet,
    *,
    replicas: int = 1,
    body_limit: int = BODY_LIMIT,
    poll_s: float = 0.5,
    patience_s: float = RETRY_S,
    access: Access = Access(),
) -> Application:
    """The application of a fleet that has been read already. Raises ConfigError for tokens that cannot be read."""
    access.rules()
    gpus = max(line.resources.get("GPU", 0) for line in fleet.lines.values())
    options = {"num_cpus": 1, **({"num_gpus": gpus} if gpus else {})}
    deployment: Any = Replica  # the decorators make it a Deployment
    made = deployment.options(num_replicas=replicas, ray_actor_options=options)
    application: Application = made.bind(fleet, body_limit, poll_s, patience_s, access)
    return application


@serve.deployment(name="lines", max_ongoing_requests=64, max_queued_requests=256)
@serve.ingress()
class Replica:
    """A desk and its routes; Serve asks for the application once the desk stands."""

    def __init__(self, fleet: Fleet, body_limit: int, poll_s: float, patience_s: float, access: Access) -> None:
        self.desk = Desk(fleet, poll_s=poll_s, patience_s=patience_s)
        self.body_limit, self.access = body_limit, access

    def __serve_build_asgi_app__(self) -> FastAPI:
        return application(self.desk, body_limit=self.body_limit, rules=self.access.rules(), failed=metrics.failed)
