"""Heatmaps of a judgement: the right images, beside their maps, in a picture that stays small."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from everline.pipelines.data.datasets import Task, read_folder
from everline.pipelines.data.view import View
from everline.pipelines.protocols.judging import Judged
from everline.pipelines.sweeps.pictures import EACH, GAP, HEAD, SIDE, chosen, heatmaps
from numpy.typing import NDArray
from PIL import Image


@pytest.fixture(scope="module")
def disc(write_disc: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Five good images and six defects to judge."""
    return read_folder(write_disc(tmp_path_factory.mktemp("data") / "disc", 2, 5, 6))


def judged(task: Task, **changed: Any) -> Judged:
    """The n-th image has the score n, and a map of n everywhere."""
    count = len(task.test)
    names = tuple(f"{one.kind}/{one.path.name}" for one in task.test)
    scores, labels = np.arange(count, dtype=np.float32), np.array([one.defect for one in task.test])
    maps = np.ones((count, 64, 64), np.float32) * scores[:, None, None]
    return Judged(**({"names": names, "scores": scores, "labels": labels, "maps": maps, "masks": None} | changed))


def tile(picture: bytes, row: int, place: int, side: int = SIDE) -> NDArray[np.uint8]:
    """A tile of 64 pixels, which is smaller than its place."""
    y, x = row * (HEAD + side + GAP) + HEAD, GAP + place * (side + GAP)
    return np.asarray(Image.open(io.BytesIO(picture)))[y : y + 64, x : x + 64]


def test_the_highest_good_ones_and_the_highest_and_lowest_defects_are_chosen(disc: Task) -> None:
    assert chosen(judged(disc)) == {
        "good, highest scores": [4, 3],
        "defects, highest scores": [10, 9],
        "defects, lowest scores": [5, 6],
    }


def test_no_image_stands_there_twice(disc: Task) -> None:
    few = judged(disc).part(3, 8)  # two good ones, three defects
    places = [n for row in chosen(few).values() for n in row]
    assert sorted(places) == [0, 1, 2, 3, 4]
    assert list(chosen(judged(disc).part(0, 5))) == ["good, highest scores"]


def test_each_image_stands_beside_its_map(disc: Task) -> None:
    picture = heatmaps(disc, judged(disc))
    assert picture is not None
    worst = View(64).picture(disc.test[10].path).permute(1, 2, 0).numpy()
    assert (tile(picture, 1, 0) == worst).all() and (tile(picture, 1, 1) != worst).any()


def test_the_scale_is_that_of_the_picture_alone(disc: Task) -> None:
    plain, wild = judged(disc), judged(disc)
    assert plain.maps is not None and wild.maps is not None
    wild.maps[7] = 1e6  # of an image that is not shown
    picture = heatmaps(disc, plain)
    assert picture is not None and picture == heatmaps(disc, wild)
    low = tile(picture, 0, 3)  # the second good one: below the median of the two that are shown
    assert (low == low[..., :1]).all() and (tile(picture, 0, 1) != tile(picture, 0, 1)[..., :1]).any()


def test_the_picture_is_small_however_large_the_images(disc: Task) -> None:
    maps = np.zeros((11, 512, 512), np.float32)
    picture = heatmaps(disc, judged(disc, maps=maps))
    assert picture is not None and len(picture) < 400_000
    assert Image.open(io.BytesIO(picture)).size == (2 * EACH * (SIDE + GAP) + GAP, 3 * (HEAD + SIDE + GAP))


def test_images_of_a_stream_are_found_by_the_end_of_their_path(disc: Task) -> None:
    names = tuple("/".join(one.path.parts[-3:]) for one in disc.test)
    assert heatmaps(disc, judged(disc, names=names)) == heatmaps(disc, judged(disc))


def test_what_is_not_there_gives_no_picture(disc: Task) -> None:
    assert heatmaps(disc, judged(disc, maps=None)) is None
    assert heatmaps(disc, judged(disc, names=tuple(f"gone/{n}.png" for n in range(11)))) is None


def test_maps_without_a_finite_value_are_shown_as_such(disc: Task) -> None:
    picture = heatmaps(disc, judged(disc, maps=np.full((11, 64, 64), np.nan, np.float32)))
    assert picture is not None and (tile(picture, 0, 1) == (0, 229, 255)).all()
