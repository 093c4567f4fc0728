"""Load over real HTTP on real lines while versions are promoted and rolled back."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from everline.pipelines.fleet.load import Sent, pictures_of, publish_two, summary, write_fleet
from everline.pipelines.main import cli
from everline.platform.images import decode
from everline.platform.versions import Versions


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_the_command_holds_load_on_a_fleet_of_its_own(tmp_path: Path) -> None:
    words = ["load", "--lines", "3", "--size", "64", "--size", "96", "--clients", "3", "--seconds", "4"]
    ran = CliRunner().invoke(cli, [*words, "--json", str(tmp_path / "found.json")])
    assert ran.exit_code == 0, ran.output
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert {row["method"] for row in found["lines"].values()} == {"coreset", "padim", "subspace"}
    for phase in found["phases"].values():
        assert phase["failed"] == 0 and phase["requests"] > 0
    assert found["failures"] == []
    assert found["promotions"] == found["rollbacks"] >= 3
    assert found["checked_after_rollback"] >= 9 and found["stale_after_rollback"] == 0
    assert set(found["served"].values()) == {1}


def test_every_line_gets_two_versions_and_images_twice_its_size(tmp_path: Path, tracking_uri: str) -> None:
    fleet = write_fleet(tmp_path, 2, ["padim"], [64, 96])
    fleet.tracking = tracking_uri
    pictures = pictures_of(fleet, [])
    assert [decode(own[0]).shape[0] for own in pictures.values()] == [128, 192]
    assert publish_two("line0", fleet, pictures["line0"]) == (1, 2)
    assert [v.images_learned for v in Versions(tracking_uri, "line0").list()] == [24, 12]


def test_a_failed_request_is_counted_and_gives_no_latency() -> None:
    found = summary(Sent(2.0, [10.0, 20.0, 30.0], ["line0: LineDown: gone"]), bare=[5.0, 5.0])
    assert (found["requests"], found["failed"], found["p50_ms"], found["per_s"]) == (4, 1, 20.0, 1.5)
    assert (found["p50_ratio"], found["per_s_ratio"]) == (4.0, 0.01)
