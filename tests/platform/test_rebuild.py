"""A version is made again from its log, and every bit compared; what differs is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from everline.methods.errors import StateError, UnknownVersion
from everline.methods.registry import build
from everline.pipelines.main import cli
from everline.platform import log
from everline.platform import rebuild as module
from everline.platform.calibration import Calibration
from everline.platform.line import Line, embed_image
from everline.platform.log import LogReader
from everline.platform.rebuild import Rebuilt, rebuild
from everline.platform.settings import LineSettings
from everline.platform.versions import Versions

QUICK = LineSettings(
    method="lemo",
    params={"size": 64, "seed": 3},
    checkpoint_every=20,
    false_reject_rate=0.2,
    probation=1,
    publish_every=25,
)


def send(line: Line, first: int, last: int, parts: list[bytes]) -> None:
    for index in range(first, last):
        line.inspect(parts[index], f"i{index}")
    line.settle()


def proved(uri: str, store: Path, number: int, settings: LineSettings = QUICK) -> Rebuilt:
    return rebuild(Versions(uri, "mono"), number, LogReader(store / "mono"), settings)


@pytest.fixture
def run(tracking_uri: str, tmp_path: Path, parts: list[bytes]) -> Path:
    """A log with two versions of lemo, killed between them, and then one of padim; returns the store."""
    store = tmp_path / "store"
    line = Line("mono", QUICK, store, Versions(tracking_uri, "mono"))
    send(line, 0, 40, parts)
    line.writer.release()  # as SIGKILL would
    line = Line("mono", QUICK, store, Versions(tracking_uri, "mono"))
    send(line, 40, 60, parts)
    line.close()
    Line("mono", replace(QUICK, method="padim"), store, Versions(tracking_uri, "mono")).close()
    return store


@pytest.mark.slow
def test_every_version_of_a_run_with_a_crash_and_another_method_is_equal_to_the_last_bit(
    run: Path, tracking_uri: str
) -> None:
    assert [v.method for v in Versions(tracking_uri, "mono").list()] == ["padim", "lemo", "lemo"]
    for number in (1, 2, 3):
        found = proved(tracking_uri, run, number, replace(QUICK, publish_every=100, threads=2))  # today's say nothing
        assert (found.equal, found.published, found.differences, found.caveats) == (True, True, [], [])


@pytest.mark.slow
def test_a_changed_byte_in_the_artifact_store_is_named(run: Path, tracking_uri: str, tmp_path: Path) -> None:
    file = min(tmp_path.glob("mlartifacts/**/state.safetensors"), key=lambda path: path.stat().st_mtime)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = proved(tracking_uri, run, 1)
    assert (found.equal, found.published) == (False, True)
    assert "checksum" in found.differences[0]
    assert [text for text in found.differences if text.startswith("tensor ") and "1 of " in text]


@pytest.mark.slow
def test_another_log_another_machine_and_a_missing_version_are_named(
    run: Path, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    line = Line("mono", QUICK, other, Versions(tracking_uri, "poly"))
    line.close()
    assert "the log ends at record -1" in proved(tracking_uri, other, 1).differences[0]
    with pytest.raises(UnknownVersion, match="valid: 1, 2, 3"):
        proved(tracking_uri, run, 9)
    monkeypatch.setattr(module, "machine", lambda threads, device: "an abacus")
    found = proved(tracking_uri, run, 1)
    assert found.equal
    assert "here: an abacus" in found.caveats[0]


@pytest.mark.slow
def test_a_version_whose_first_images_are_gone_is_made_again_from_a_kept_checkpoint(
    tracking_uri: str, tmp_path: Path, parts: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "SEAL_RECORDS", 5)
    line = Line("mono", replace(QUICK, checkpoint_every=5, keep_images=10), tmp_path, Versions(tracking_uri, "mono"))
    send(line, 0, 60, parts)
    line.close()
    assert LogReader(tmp_path / "mono").images_from > 0
    for number in (1, 2):  # the previous one and the current
        found = proved(tracking_uri, tmp_path, number)
        assert (found.equal, found.differences) == (True, [])
        assert "rebuilt from the checkpoint after record" in found.caveats[0]
    shutil.rmtree(tmp_path / "mono" / "checkpoints")
    with pytest.raises(StateError, match="cannot be made again"):
        proved(tracking_uri, tmp_path, 1)


def test_a_version_of_a_sweep_says_that_the_log_did_not_make_it(
    tracking_uri: str, tmp_path: Path, parts: list[bytes]
) -> None:
    detector = build("padim", size=64)
    for data in parts[:20]:
        detector.learn(embed_image(detector, data))
    versions = Versions(tracking_uri, "mono")
    tags = {"source": "sweep", "objective": "auroc"}
    versions.propose(detector.state(), Calibration.of([1.0], 0.2), watermark=19, key="mono/sweep/ab/cd", tags=tags)
    versions.rollback(1)  # promoted
    found = proved(tracking_uri, tmp_path, 1)
    assert (found.equal, found.records) == (None, 0)
    assert "sweep" in found.differences[0]
    assert "objective auroc" in found.differences[0]


@pytest.mark.slow
def test_the_command_proves_a_version_and_says_what_differs(run: Path, tracking_uri: str, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(f"store: {run}\ntracking: {tracking_uri}\nlines:\n  mono: {{method: padim}}\n")

    def command(number: int) -> tuple[int, dict[str, Any]]:
        words = [
            "versions",
            "mono",
            "--rebuild",
            str(number),
            "--fleet",
            str(fleet),
            "--json",
            str(tmp_path / "out.json"),
        ]
        ran = CliRunner().invoke(cli, words)
        return ran.exit_code, json.loads((tmp_path / "out.json").read_text())

    code, found = command(1)
    assert (code, found["equal"], found["differences"]) == (0, True, [])
    (detector,) = [f for f in tmp_path.glob("mlartifacts/**/calibration.json") if b"[" in f.read_bytes()][:1]
    detector.write_text(detector.read_text().replace('"scores": [', '"scores": [0.125, '))
    assert {command(number)[0] for number in (1, 2, 3)} == {0, 1}
