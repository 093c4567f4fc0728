"""A line with two published versions, real ones, and a folder to judge with them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from everline.methods import conformance
from everline.methods.registry import build
from everline.platform.calibration import Calibration
from everline.platform.versions import Versions

from ...conftest import copied_tracking

Publish = Callable[..., int]


@pytest.fixture(scope="session")
def publish() -> Publish:
    """publish(uri, line, method="coreset", learned=4, rate=0.1, size=64) -> the version's number."""

    def made(uri: str, line: str, method: str = "coreset", learned: int = 4, rate: float = 0.1, size: int = 64) -> int:
        detector = build(method, size=size)
        for one in conformance.images(learned, 1)[:, :, :size, :size]:
            detector.learn(detector.embed(one[None]))
        fresh = conformance.images(12, 5)[:, :, :size, :size]
        scores = [float(detector.score(detector.embed(one[None])).image[0]) for one in fresh]
        key = f"{line}/{method}/{learned}/{rate}/{size}"
        return Versions(uri, line).publish(detector.state(), Calibration.of(scores, rate), watermark=learned, key=key)

    return made


def write_fleet(folder: Path, uri: str) -> Path:
    """A fleet file of the lines mono, poly and none that tracks its versions there."""
    file = folder / "fleet.yaml"
    file.write_text(f"tracking: {uri}\nlines:\n  mono: {{}}\n  poly: {{}}\n  none: {{}}\n")
    return file


def publish_two(publish: Publish, uri: str) -> None:
    """Of mono: 1 (previous) learned one image and rejects half of what is good, 2 (current) four, and a tenth."""
    publish(uri, "mono", learned=1, rate=0.5)
    publish(uri, "mono", learned=4, rate=0.1)


@pytest.fixture(scope="session")
def published(prepared_tracking: Path, tmp_path_factory: pytest.TempPathFactory, publish: Publish) -> str:
    """The address of a store with versions of mono (see `publish_two`), and two of poly, by padim; nobody adds any."""
    uri = copied_tracking(prepared_tracking, tmp_path_factory.mktemp("published"))
    publish_two(publish, uri)
    for size in (64, 32):
        publish(uri, "poly", "padim", learned=5, size=size)
    return uri


@pytest.fixture(scope="session")
def fleet(published: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet file of the lines that are published there."""
    return write_fleet(tmp_path_factory.mktemp("fleet"), published)


@pytest.fixture
def own_fleet(tracking_uri: str, tmp_path: Path, publish: Publish) -> Path:
    """A fleet file whose store is the test's own, with the two versions of mono."""
    publish_two(publish, tracking_uri)
    return write_fleet(tmp_path, tracking_uri)


@pytest.fixture(scope="session")
def disc(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> Path:
    """A folder in MVTec layout: six good images, four scratches with masks."""
    return write_disc(tmp_path_factory.mktemp("disc") / "disc", train=2, good=6, bad=4, masks=True)
