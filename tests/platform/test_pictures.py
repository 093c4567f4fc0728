"""Maps as colours: one scale, nothing hidden, bytes that decode to what went in."""

from io import BytesIO

import numpy as np
import pytest
from everline.methods.errors import ConfigError
from everline.platform import pictures
from PIL import Image


def _luminance(rgb):
    linear = (np.asarray(rgb) / 255.0) ** 2.2
    return linear @ [0.2126, 0.7152, 0.0722]


def _decoded(data):
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def _image(seed=0, shape=(40, 60, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_the_ramp_rises_in_lightness_row_by_row():
    light = _luminance(pictures.colours()[: pictures.LEVELS])
    assert (np.diff(light) > -0.002).all()  # rounding to 8 bits may take back a hair
    assert (np.diff(light[::8]) > 0).all()
    assert light[-1] > 0.75 and light[0] < 0.1


def test_neighbouring_colours_are_close_and_no_two_rows_are_one():
    ramp = pictures.colours()[: pictures.LEVELS].astype(int)
    assert np.abs(np.diff(ramp, axis=0)).max() <= 8
    assert len(np.unique(ramp, axis=0)) == pictures.LEVELS


def test_levels_follow_the_values_and_stop_at_the_ends():
    values = np.array([[-np.inf, -1.0, 0.0, 0.5, 1.0, 9.0, np.inf, np.nan]])
    assert pictures.levels(values, 0.0, 1.0).tolist() == [[0, 0, 0, 127, 254, 254, 254, pictures.NO_VALUE]]


def test_equal_values_have_equal_colours_in_different_maps():
    one = _decoded(pictures.map_png(np.array([[0.3, 0.9]]), 0.0, 1.0))
    two = _decoded(pictures.map_png(np.array([[0.3, 0.1, 0.2]]), 0.0, 1.0))
    assert (one[0, 0] == two[0, 0]).all()
    assert (one[0, 0] != one[0, 1]).any()


def test_a_range_without_width_splits_at_its_value():
    assert pictures.levels(np.array([[1.0, 2.0, 2.5]]), 2.0, 2.0).tolist() == [[0, 0, 254]]


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (np.nan, 1.0), (0.0, np.inf)])
def test_a_range_that_is_none_is_refused(low, high):
    with pytest.raises(ConfigError, match="low <= high"):
        pictures.levels(np.zeros((2, 2)), low, high)


def test_values_beyond_float32_are_the_top_colour():
    far = pictures.overlay(_image(), np.full((4, 4), 1e300), 0.0, 1.0)
    assert (far == pictures.overlay(_image(), np.ones((4, 4)), 0.0, 1.0)).all()


@pytest.mark.parametrize("shape", [(40, 60), (7, 9), (80, 100), (1, 1)])
def test_an_overlay_has_the_images_shape_whatever_the_maps(shape):
    covered = pictures.overlay(_image(), np.random.default_rng(1).random(shape, np.float32), 0.0, 1.0)
    assert covered.shape == (40, 60, 3) and covered.dtype == np.uint8


def test_an_overlay_at_the_low_end_is_the_image_in_grey():
    image = _image()
    covered = pictures.overlay(image, np.zeros((40, 60), np.float32), 0.0, 1.0)
    grey = np.rint(image @ [0.299, 0.587, 0.114])
    assert (covered == grey[..., None]).all()


def test_an_overlay_shows_where_the_anomaly_is():
    anomaly = np.zeros((40, 60), np.float32)
    anomaly[10:20, 30:40] = 1
    covered = pictures.overlay(np.full((40, 60, 3), 128, np.uint8), anomaly, 0.0, 1.0).astype(int)
    coloured = np.ptp(covered, axis=2) > 20
    assert (coloured == (anomaly > 0)).all()


def test_nan_is_shown_in_its_own_colour_and_does_no_harm_elsewhere():
    anomaly = np.zeros((40, 60), np.float32)
    anomaly[0, 0] = np.nan
    covered = pictures.overlay(_image(), anomaly, 0.0, 1.0)
    assert (covered[0, 0] == pictures.colours()[pictures.NO_VALUE]).all()
    assert np.ptp(covered[1:].astype(int), axis=2).max() == 0


def test_the_colour_of_nan_is_far_from_the_ramp():
    table = pictures.colours().astype(int)
    assert np.linalg.norm(table[:-1] - table[-1], axis=1).min() > 100


def test_png_gives_back_the_pixels():
    assert (_decoded(pictures.png(_image())) == _image()).all()
    grey = _image()[..., 0]
    assert (np.asarray(Image.open(BytesIO(pictures.png(grey)))) == grey).all()


def test_a_map_png_decodes_to_the_colours_of_its_levels():
    anomaly = np.random.default_rng(2).random((11, 13))
    anomaly[3, 4] = np.nan
    wanted = pictures.colours()[pictures.levels(anomaly, 0.2, 0.7)]
    assert (_decoded(pictures.map_png(anomaly, 0.2, 0.7)) == wanted).all()


def test_shrink_keeps_the_shape_and_leaves_small_images_alone():
    assert pictures.shrink(_image(shape=(100, 400, 3)), 200).shape == (50, 200, 3)
    assert (pictures.shrink(_image(), 60) == _image()).all()
    assert pictures.shrink(_image(shape=(1, 900, 3)), 100).shape == (1, 100, 3)


def test_an_outline_runs_round_the_mask_and_leaves_the_rest():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 10:20] = 255
    image = np.full((40, 60, 3), 100, np.uint8)
    drawn = pictures.outline(image, mask)
    assert (drawn[9, 10:20] == 255).all() and (drawn[10:20, 20] == 255).all()
    assert (drawn[12:18, 12:18] == 100).all() and (drawn[25:] == 100).all()
    assert (image == 100).all()


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_image_is_refused_with_what_came(image):
    with pytest.raises(ConfigError, match=r"uint8 \(H, W, 3\), not"):
        pictures.overlay(image, np.zeros((4, 4)), 0.0, 1.0)


@pytest.mark.parametrize("anomaly", [np.zeros(4), np.zeros((2, 2), int), np.zeros((0, 3))])
def test_what_is_no_map_is_refused_with_what_came(anomaly):
    with pytest.raises(ConfigError, match=r"float \(h, w\), not"):
        pictures.map_png(anomaly, 0.0, 1.0)
