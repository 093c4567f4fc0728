"""What all tests share: one thread for torch, one Ray session and one tracking store for those that need them."""

import io
import logging
import os
import secrets
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from everline.platform.volume import Place, S3Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a local cluster of the tests' own
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["EVERLINE_TRACKING"] = "none"  # evaluations that are not about tracking; those that are say where


def pytest_addoption(parser: pytest.Parser) -> None:
    """How hard the log's crash test tries."""
    parser.addoption("--kills", type=int, default=300, help="processes that tests/platform/test_log_faults.py kills")
    parser.addoption("--kill-seed", type=int, help="their random numbers; new ones for each run unless given")


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
def prepared_tracking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty tracking database; made once, since the schema takes seconds."""
    from everline.platform.tracking import prepare_tracking

    path = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    prepare_tracking(f"sqlite:///{path}")
    return path


@pytest.fixture
def tracking_uri(prepared_tracking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A test's own copy, with artifacts beside it, and a current folder that must stay empty."""
    copied = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(prepared_tracking)) as source, closing(sqlite3.connect(copied)) as copy:
        source.backup(copy)  # a plain copy would miss what is still in the write-ahead log
        moved = (prepared_tracking.parent.as_uri(), tmp_path.as_uri())
        copy.execute("UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)", moved)
        copy.commit()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    yield f"sqlite:///{copied}"
    assert not list(elsewhere.iterdir()), "MLflow left something in the current folder"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A real S3 API on this machine; returns its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What tells boto3 of it; returns the address."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return s3_server


@pytest.fixture
def s3_store(s3_environment: str) -> "S3Path":
    """An empty prefix of a bucket."""
    import boto3
    from everline.platform.volume import S3Path

    boto3.client("s3").create_bucket(Bucket="everline-tests")
    return S3Path("everline-tests", f"store-{secrets.token_hex(4)}")


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> "Place":
    """A folder to keep logs in: on the disk, then on S3."""
    return tmp_path if request.param == "local" else request.getfixturevalue("s3_store")


def encoded(index: int, defect: bool = False) -> bytes:
    """A made-up part as PNG bytes, 64 pixels square; every index is another picture."""
    from everline.methods.conformance import images
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(images(1, seed=1000 + index, defect=defect)[0].permute(1, 2, 0).numpy()).save(out, "png")
    return out.getvalue()


@pytest.fixture(scope="session")
def parts() -> list[bytes]:
    """Sixty made-up good parts."""
    return [encoded(index) for index in range(60)]


@pytest.fixture(scope="session")
def more_parts() -> list[bytes]:
    """Forty others."""
    return [encoded(index) for index in range(60, 100)]


@pytest.fixture(scope="session")
def write_disc() -> Callable[..., Path]:
    """Writes a small task in MVTec layout: write(root, train, good, bad, masks=False, product=0) -> root.

    Discs that are good, or scratched (kind `scratch`); a mask is a scratch's surroundings. Other products than 0 are
    dark discs on a bright ground, each darker than the one before.
    """
    import numpy as np
    from everline.methods.conformance import images
    from PIL import Image

    def save(folder: Path, count: int, seed: int, product: int, defect: bool = False) -> None:
        folder.mkdir(parents=True)
        for n, one in enumerate(images(count, seed + 10 * product, defect)):
            if product:
                one = (255 - one) // product
            Image.fromarray(one.permute(1, 2, 0).numpy()).save(folder / f"{n:03}.png")

    def write(root: Path, train: int, good: int, bad: int, masks: bool = False, product: int = 0) -> Path:
        save(root / "train/good", train, 1, product)
        save(root / "test/good", good, 2, product)
        save(root / "test/scratch", bad, 3, product, defect=True)
        if masks:
            (root / "ground_truth/scratch").mkdir(parents=True)
            mask = np.zeros((64, 64), np.uint8)
            mask[18:48, 18:42] = 255
            for n in range(bad):
                Image.fromarray(mask).save(root / f"ground_truth/scratch/{n:03}_mask.png")
        return root

    return write


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real images beside the project, for those who have them."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real images are not beside this checkout")
    return folder
