"""The measurement of alarms tells a drift that moves everything from nothing."""

from pathlib import Path

import pytest
from everline.methods.conformance import images
from everline.pipelines.runs import alarms
from PIL import Image


@pytest.mark.slow
def test_noise_on_every_image_is_a_drift_and_nothing_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarms, "DRIFTS", ("noise=100",))
    monkeypatch.setattr(alarms, "ORDERS", 1)
    for part, count, bad in (("train/good", 200, False), ("test/good", 20, False), ("test/scratch", 6, True)):
        (tmp_path / part).mkdir(parents=True)
        for n, image in enumerate(images(count, seed=len(part), defect=bad)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / part / f"{n:03}.png")
    found = {seen.what: seen for seen in alarms.measure(tmp_path, size=64)}
    assert found["nothing"].drift == ()
    assert found["noise=100"].drift and found["noise=100"].drift[0] <= 20
