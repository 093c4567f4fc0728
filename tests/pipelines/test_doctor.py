"""The doctor sees what is wrong and says the mend."""

import json

from click.testing import CliRunner
from everline.pipelines.doctor import CHECKS, diagnose_torchvision, doctor


def test_this_machine_is_looked_at() -> None:
    ran = CliRunner().invoke(doctor, ["--json", "-"])
    found = json.loads(ran.output)
    assert len(found) == len(CHECKS)
    assert {f["what"] for f in found if f["ok"]} >= {"Python", "torch", "torchvision", "ray", "mlflow"}


def test_a_mixed_torch_and_torchvision_is_recognised() -> None:
    def load() -> str:
        raise RuntimeError("operator torchvision::nms does not exist")

    finding = diagnose_torchvision(load)
    assert not finding.ok
    assert "same index" in finding.mend


def test_any_other_import_error_is_shown() -> None:
    def load() -> str:
        raise ImportError("libjpeg is gone")

    finding = diagnose_torchvision(load)
    assert not finding.ok
    assert "libjpeg" in finding.seen
