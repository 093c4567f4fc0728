"""What all tests share: one thread for torch, one Ray session and one tracking store for those that need them."""

import io
import json
import logging
import os
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from everline.platform.volume import Place, S3Path

os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # of this run's clusters, for all its processes
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["EVERLINE_TRACKING"] = "none"  # evaluations that are not about tracking; those that are say where


ROOT = Path(__file__).parent
MAIN = [sys.executable, "-c", "from everline.pipelines.main import main; main()"]  # the command line, in a process
FIRST = (  # what takes longest, so that two processes end together; each file is run by one of them
    "served", "pipelines/fleet/test_up.py", "pipelines/fleet/test_demo.py", "pipelines/sweeps/test_resume.py",
    "pipelines/sweeps/test_cluster.py", "pipelines/test_soak.py", "platform/test_actor.py", "test_docs.py",
    "deploy/test_cluster_files.py", "pipelines/fleet", "pipelines/sweeps", "methods/test_conformance.py", "platform",
)  # fmt: skip
PATIENCE_S = 120.0  # for what takes a few seconds on a machine with nothing else to do


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --long, how hard the log's crash test tries, and where the conformance suite computes."""
    parser.addoption("--long", action="store_true", help="everything at full size, as `make test-long` does: hours")
    parser.addoption("--kills", type=int, help="processes that test_log_faults.py kills (50; 300 with --long)")
    parser.addoption("--kill-seed", type=int, help="their random numbers; new ones for each run unless given")
    parser.addoption("--device", default="cpu", help="where test_conformance.py computes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the longest files to the front, and leave out what is long."""
    if not config.getoption("--long"):
        kept = [item for item in items if not item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept
    files = {item: item.path.relative_to(ROOT).as_posix() for item in items}
    ranks = {
        file: next((n for n, one in enumerate(FIRST) if file.startswith(one)), len(FIRST)) for file in files.values()
    }
    items.sort(key=lambda item: ranks[files[item]])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file to one process of pytest-xdist, and the tests of the served fleet together to one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "tests/served" if file.startswith("tests/served/") else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def sized(pytestconfig: pytest.Config) -> Callable[[Any, Any], Any]:
    """sized(usual, long): how much of something a test does; the second with --long."""
    return lambda usual, long: long if pytestconfig.getoption("--long") else usual


@pytest.fixture(scope="session")
def ray_session() -> Iterator[str]:
    """One local Ray cluster for the whole run, and its address: logical CPUs may exceed real ones.

    Commands that are called in this process use it; those in processes of their own join it by RAY_ADDRESS.
    """
    import ray
    from everline.platform.cluster import FOR_SERVE

    os.environ.update(FOR_SERVE | os.environ)
    with tempfile.TemporaryDirectory(prefix="ev", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=8,
            include_dashboard=False,
            object_store_memory=256 * 2**20,
            log_to_driver=False,
            _temp_dir=folder,
            _system_config={"metrics_report_interval_ms": 1000},  # in place of ten seconds
        )
        yield str(ray.get_runtime_context().gcs_address)
        ray.shutdown()


@pytest.fixture(scope="session")
def prepared_tracking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty tracking database; made once, since the schema takes seconds."""
    from everline.platform.tracking import prepare_tracking

    path = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    prepare_tracking(f"sqlite:///{path}")
    return path


def copied_tracking(prepared: Path, folder: Path) -> str:
    """The address of a copy of an empty tracking database, with artifacts beside it."""
    copied = folder / "mlflow.db"
    with closing(sqlite3.connect(prepared)) as source, closing(sqlite3.connect(copied)) as copy:
        source.backup(copy)  # a plain copy would miss what is still in the write-ahead log
        moved = (prepared.parent.as_uri(), folder.as_uri())
        copy.execute("UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)", moved)
        copy.commit()
    return f"sqlite:///{copied}"


@pytest.fixture
def tracking_uri(prepared_tracking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A test's own copy, with artifacts beside it, and a current folder that must stay empty."""
    uri = copied_tracking(prepared_tracking, tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    yield uri
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


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> "Place":
    """A folder to keep logs in: on the disk, then on S3."""
    return tmp_path if request.param == "local" else request.getfixturevalue("s3_store")


def missing(what: str) -> NoReturn:
    """Skips a test for want of a program; in CI, where nothing may be missing, it fails."""
    if os.environ.get("EVERLINE_NO_SKIPS"):
        pytest.fail(f"{what} (EVERLINE_NO_SKIPS is set)")
    pytest.skip(what)


class Postgres:
    """A real Postgres in a folder of its own, on a free port; `start` and `stop` as often as one likes."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.data = programs, folder / "data"
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        if os.getuid() == 0:  # it refuses to run as root
            shutil.chown(folder, "nobody")
        (folder / "password").write_text("se:cr@t")
        (folder / "password").chmod(0o644)
        login = ["-U", "me", "--auth", "scram-sha-256", "--pwfile", str(folder / "password")]
        self._run("initdb", "-D", str(self.data), "-N", "--locale=C", "-E", "UTF8", *login)
        self.start()

    def uri(self, database: str = "postgres") -> str:
        return f"postgresql+pg8000://me:se%3Acr%40t@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self.data / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", "fast", "stop")

    def _run(self, program: str, *words: str) -> None:
        user: dict[str, Any] = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}
        command = [str(self.programs / program), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", timeout=200, **user)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Debian's Postgres, started by the test; skips where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [
        Path(path) for path in [shutil.which("initdb")] if path
    ]
    if not found:
        missing("there is no Postgres here: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="evpg", dir="/tmp", ignore_cleanup_errors=True) as folder:
        server = Postgres(found[-1].parent, Path(folder))
        yield server
        server.stop()


@pytest.fixture  # not for longer: while it is there, asyncio says that a loop is running
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a window; skips where there is none, or no Playwright."""
    program = shutil.which("chromium")
    if program is None:
        missing("there is no Chromium here: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("there is no Playwright here: make setup")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@dataclass
class Said:
    """What a command said, and its exit status."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def typed(*words: object) -> Said:
    """Run `everline WORDS` in this process, as its entry point does; it stays in the cluster of this process."""
    from everline.pipelines.main import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["everline", *map(str, words)])
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Said(code, out.getvalue(), err.getvalue())


def until(condition: Callable[[], Any], patience_s: float = PATIENCE_S, pause_s: float = 0.05) -> Any:
    """What the condition gives as soon as it is something; fails where that takes too long."""
    give_up = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < give_up, f"it did not happen within {patience_s:g} s"
        time.sleep(pause_s)
    return found


def flat_webp(side: int) -> bytes:
    """A lossless WebP of one colour: 34 bytes, whatever its size, which stands in one field of the header."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "WEBP", lossless=True)
    data = bytearray(out.getvalue())
    rest = int.from_bytes(data[21:25], "little") & ~0xFFFFFFF
    data[21:25] = (rest | (side - 1) | (side - 1) << 14).to_bytes(4, "little")
    return bytes(data)


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
def scrape() -> Callable[[list[str]], dict[tuple[str, frozenset[tuple[str, str]]], float]]:
    """What is behind the `host:port` of Ray's agents: (everline's name, its labels) -> the sum over processes."""
    from urllib.request import urlopen

    from everline.platform.metrics import METRICS, PREFIX
    from prometheus_client.parser import text_string_to_metric_families

    ours = {"le"}.union(*(metric.labels for metric in METRICS.values()))

    def look(targets: list[str]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for target in targets:
            with urlopen(f"http://{target}/metrics", timeout=30) as page:
                families = list(text_string_to_metric_families(page.read().decode()))
            for sample in (one for family in families for one in family.samples):
                if sample.name.startswith(f"{PREFIX}everline"):
                    labels = frozenset((k, v) for k, v in sample.labels.items() if k in ours)
                    key = sample.name.removeprefix(PREFIX), labels
                    found[key] = found.get(key, 0.0) + sample.value
        return found

    return look


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real images beside the project, for those who have them."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real images are not beside this checkout")
    return folder
