"""Starting the server: ports, addresses, and what a Serve configuration may say. Served answers: tests/served."""

import socket
from pathlib import Path

import pytest
import yaml
from everline.deploy.app import Args, build
from everline.deploy.server import check_port
from everline.methods.errors import ConfigError, PortInUse
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"127.0.0.1:{port}.*--port"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("203.0.113.7", 8000), ("127.0.0.1", 99999), ("no.such.host.invalid", 1)])
def test_an_address_that_nobody_can_listen_on_is_refused(host: str, port: int) -> None:
    with pytest.raises(PortInUse, match="cannot listen"):
        check_port(host, port)


def test_build_takes_a_fleet_file_or_its_contents(tmp_path: Path) -> None:
    plain = {"store": str(tmp_path), "lines": {"mono": {"method": "padim"}}}
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(plain), "utf-8")
    for fleet in (plain, str(tmp_path / "fleet.yaml")):
        application = build(Args(fleet=fleet, replicas=2))
        assert application._bound_deployment.num_replicas == 2


def test_build_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="replcas"):
        Args(fleet="fleet.yaml", replcas=2)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="no fleet file"):
        build(Args(fleet="/nowhere/fleet.yaml"))


def test_the_sample_configuration_is_valid_and_stays_on_this_machine() -> None:
    sample = Path(__file__).parents[2] / "deploy" / "serve.yaml"
    config = ServeDeploySchema.model_validate(yaml.safe_load(sample.read_text("utf-8")))
    assert config.http_options.host == "127.0.0.1"
    (application,) = config.applications
    assert application.import_path == "everline.deploy.app:build"
    Args.model_validate(application.args)
