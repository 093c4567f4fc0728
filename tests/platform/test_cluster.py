"""Joining a cluster from a process that is connected to Ray already."""

import pytest
import ray
from everline.platform.cluster import address, connect, disconnect


@pytest.mark.parametrize("own", [False, True])
def test_a_callers_own_connection_is_used_and_stays(ray_session: str, own: bool) -> None:
    assert connect(own) is False
    assert address() == ray_session
    disconnect()
    assert ray.is_initialized() and address() == ray_session
