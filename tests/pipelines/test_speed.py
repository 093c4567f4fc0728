"""`everline speed`: it times figures that agree with scikit-learn's, and nothing else."""

import pytest
from click.testing import CliRunner
from everline.methods.errors import DataError
from everline.methods.metrics import Ranks
from everline.pipelines.speed import made_up, speed, timed


def test_every_figure_has_its_time_and_its_baseline() -> None:
    rows = timed(*made_up(2, 32, 3))
    assert [name.split(",")[0] for name, _, _ in rows] == ["pixel AUROC", "pixel AP", "AUPRO", "all of them"]
    assert rows[-1][2] == pytest.approx(sum(base for _, _, base in rows[:-1]))  # nothing is counted twice


def test_the_time_of_a_wrong_figure_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "auroc", property(lambda self: 0.5))
    with pytest.raises(DataError, match=r"AUROC: 0\.5 here"):
        timed(*made_up(2, 32, 3))


def test_the_command_prints_the_table() -> None:
    ran = CliRunner().invoke(speed, ["--images", "2", "--side", "32", "--regions", "3"], catch_exceptions=False)
    assert ran.exit_code == 0 and "ratio" in ran.output and "all of them" in ran.output
