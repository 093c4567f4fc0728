"""What a pass of several images costs, and whether an image's bits depend on its company: measured, not assumed."""

import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from everline.methods.backbones import Backbone
from everline.pipelines.runs import batches
from torch import Tensor


def rows(*words: object) -> list[dict[str, Any]]:
    command = [*(str(word) for word in words), "--json", "-"]
    done = CliRunner().invoke(batches.batches, command, catch_exceptions=False)
    return list(json.loads(done.stdout))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "ROUNDS", 2)


def test_every_size_and_number_of_images_has_its_row() -> None:
    found = rows("--size", 32, 64, "--batch", 2, 3)
    assert [(row["size"], row["batch"]) for row in found] == [(32, 2), (32, 3), (64, 2), (64, 3)]
    assert all(row["ms an image"] > 0 for row in found)


def test_bits_that_depend_on_the_company_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "passed", lambda self, images: images.float() + images.float().mean())
    assert {rows("--size", 32, "--batch", 3)[0][what] for what in ("bits of one", "bits anywhere")} == {"no"}


def test_bits_that_depend_on_the_number_alone_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_number(self: Backbone, images: Tensor) -> Tensor:
        return images.float() * torch.tensor(len(images))

    monkeypatch.setattr(Backbone, "passed", by_number)
    row = rows("--size", 32, "--batch", 3)[0]
    assert (row["bits of one"], row["bits anywhere"]) == ("no", "yes")
