"""The Ray Serve application: one deployment that holds every line of a fleet.

In a Serve config file: `import_path: everline.deploy.app:build` with `args: {fleet: PATH}` (see serve.yaml).
"""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from ..platform.settings import Fleet, parse_fleet, read_fleet
from .desk import Desk
from .web import BODY_LIMIT, application

MIB = 2**20


class Args(BaseModel):
    """What a Serve config may say. `fleet`: a fleet file's path, or what would stand in one."""

    model_config = ConfigDict(extra="forbid")
    fleet: str | dict[str, Any]
    replicas: int = Field(default=1, ge=1, le=256)
    body_limit_mib: int = Field(default=BODY_LIMIT // MIB, ge=1, le=1024)
    poll_s: float = Field(default=0.5, ge=0.05, le=60)


def build(args: Args) -> Application:
    """The application of a fleet; relative paths in an inline fleet start at the current folder.

    Raises ConfigError, UnknownName.
    """
    fleet = parse_fleet(args.fleet, Path.cwd()) if isinstance(args.fleet, dict) else read_fleet(Path(args.fleet))
    return bind(fleet, replicas=args.replicas, body_limit=args.body_limit_mib * MIB, poll_s=args.poll_s)


def bind(fleet: Fleet, *, replicas: int = 1, body_limit: int = BODY_LIMIT, poll_s: float = 0.5) -> Application:
    """The application of a fleet that has been read already."""
    gpus = max(line.resources.get("GPU", 0) for line in fleet.lines.values())
    options = {"num_cpus": 1, **({"num_gpus": gpus} if gpus else {})}
    deployment: Any = Replica  # the decorators make it a Deployment
    return deployment.options(num_replicas=replicas, ray_actor_options=options).bind(fleet, body_limit, poll_s)


@serve.deployment(name="lines", max_ongoing_requests=64, max_queued_requests=256)
@serve.ingress()
class Replica:
    """A desk and its routes; Serve asks for the application once the desk stands."""

    def __init__(self, fleet: Fleet, body_limit: int, poll_s: float) -> None:
        self.desk, self.body_limit = Desk(fleet, poll_s=poll_s), body_limit

    def __serve_build_asgi_app__(self) -> FastAPI:
        return application(self.desk, body_limit=self.body_limit)
