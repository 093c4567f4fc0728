"""What all tests share: one thread for torch, and one Ray session for those that need it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a local cluster of the tests' own
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray cluster for the whole run: logical CPUs may exceed real ones."""
    import ray

    with tempfile.TemporaryDirectory(prefix="ev", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=8,
            include_dashboard=False,
            object_store_memory=256 * 2**20,
            log_to_driver=False,
            _temp_dir=folder,
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real images beside the project, for those who have them."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real images are not beside this checkout")
    return folder
