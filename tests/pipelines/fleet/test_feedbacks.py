"""The measurement of what an operator's words are worth tells a line that heard them from one that did not."""

from pathlib import Path

import pytest
from everline.methods.conformance import images
from everline.pipelines.data.datasets import read_folder
from everline.pipelines.data.drift import Drift
from everline.pipelines.fleet.feedbacks import measured
from everline.platform.settings import LineSettings
from PIL import Image


@pytest.mark.slow
def test_words_and_a_version_that_learned_another_light_lower_its_false_rejects(tmp_path: Path) -> None:
    for part, count, bad in (("train/good", 220, False), ("test/good", 20, False), ("test/scratch", 4, True)):
        (tmp_path / part).mkdir(parents=True)
        for n, image in enumerate(images(count, seed=len(part), defect=bad)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / part / f"{n:03}.png")
    line = LineSettings(method="coreset", params={"size": 64}, false_reject_rate=0.05)
    found = measured(read_folder(tmp_path), line, Drift.parse("noise=20"), words=20, seed=0)
    assert 0 < found.told <= 20 and found.images <= 66
    assert found.clean_false_rejects < 0.3 < 0.9 < found.before_false_rejects
    assert found.after_false_rejects < found.before_false_rejects
    assert found.untold_false_rejects < 0.4 and found.untold_found > 0.2
    assert found.untold_version is not None and 25 <= found.untold_version <= 66
    assert 20 <= found.untold_learning <= found.untold_version
