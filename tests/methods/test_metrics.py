"""The metrics against scikit-learn, and against references that walk over every threshold one by one."""

import math
from itertools import pairwise

import numpy as np
import pytest
from everline.methods.errors import ConfigError
from everline.methods.metrics import aupro, auroc, average_precision, best_f1, evaluate
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

SHAPE = (3, 4, 5)
few = st.sampled_from([-1e30, -2.0, -0.0, 0.0, 1e-30, 1.0, 1.0000001, 3e30])  # ties and heavy tails
wide = st.floats(-1e6, 1e6, width=32)
images = arrays(np.float32, SHAPE, elements=st.one_of(few.map(lambda v: float(np.float32(v))), wide))
marks = arrays(np.bool_, SHAPE, elements=st.booleans())
brief = settings(max_examples=80, deadline=None)


def pro_by_thresholds(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """Every distinct threshold in turn; trapezoids; the last one cut at the limit. Regions by flood fill."""
    regions = [part for n, mask in enumerate(masks) for part in regions_of(n, mask)]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        found = maps >= threshold
        overlap = np.mean([np.mean([found[p] for p in region]) for region in regions])
        points.append((float(found[~masks].mean()), float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit and x1 > x0:
            stop = min(x1, limit)
            y_stop = y0 + (y1 - y0) * (stop - x0) / (x1 - x0)
            area += (stop - x0) * (y0 + y_stop) / 2
    return area / limit


def regions_of(n: int, mask: np.ndarray) -> list[list[tuple[int, int, int]]]:
    left, out = set(zip(*np.nonzero(mask), strict=True)), []
    while left:
        todo, region = [left.pop()], []
        while todo:
            y, x = todo.pop()
            region.append((n, int(y), int(x)))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            todo += near
        out.append(region)
    return out


def both(marks: np.ndarray) -> bool:
    return bool(marks.any() and not marks.all())


@brief
@given(images, marks)
def test_auroc_is_scikit_learns(maps: np.ndarray, masks: np.ndarray) -> None:
    if both(masks):
        assert auroc(maps, masks) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    else:
        assert math.isnan(auroc(maps, masks))


@brief
@given(images, marks)
def test_average_precision_is_scikit_learns(maps: np.ndarray, masks: np.ndarray) -> None:
    if both(masks):
        want = average_precision_score(masks.ravel(), maps.ravel())
        assert average_precision(maps, masks) == pytest.approx(want, abs=1e-12)
    else:
        assert math.isnan(average_precision(maps, masks))


@brief
@given(images, marks)
def test_best_f1_is_the_best_of_all_thresholds(maps: np.ndarray, masks: np.ndarray) -> None:
    if both(masks):
        precision, recall, _ = precision_recall_curve(masks.ravel(), maps.ravel())
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
        assert best_f1(maps, masks) == pytest.approx(f1.max(), abs=1e-12)
    else:
        assert math.isnan(best_f1(maps, masks))


@brief
@given(images, marks, st.sampled_from([0.05, 0.3, 0.77, 1.0]))
def test_aupro_is_the_curve_walked_threshold_by_threshold(maps: np.ndarray, masks: np.ndarray, limit: float) -> None:
    if both(masks):
        assert aupro(maps, masks, limit) == pytest.approx(pro_by_thresholds(maps, masks, limit), abs=1e-9)
    else:
        assert math.isnan(aupro(maps, masks, limit))


@brief
@given(images, marks)
def test_any_increasing_change_of_scores_changes_nothing(maps: np.ndarray, masks: np.ndarray) -> None:
    ranks = np.unique(maps, return_inverse=True)[1].reshape(SHAPE)
    labels = masks.any((1, 2))
    a = evaluate(maps.max((1, 2)), labels, maps, masks)
    b = evaluate(ranks.max((1, 2)), labels, ranks**3, masks)
    assert a == pytest.approx(b, nan_ok=True, abs=0)


def test_constant_scores_are_worth_a_coin() -> None:
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 2:4, 2:4] = True
    flat = np.full((2, 8, 8), 7.0, np.float32)
    assert auroc(flat, masks) == 0.5
    assert average_precision(flat, masks) == pytest.approx(4 / 128)
    assert best_f1(flat, masks) == pytest.approx(8 / 132)
    assert aupro(flat, masks) == pytest.approx(0.15)  # the diagonal up to 0.3, divided by 0.3


def test_perfect_maps_score_one() -> None:
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 2:4, 2:4] = True
    got = evaluate(np.array([2.0, 1.0]), np.array([True, False]), masks.astype(np.float32), masks)
    assert got == dict.fromkeys(got, 1.0)
    assert evaluate(np.array([1.0, 2.0]), np.array([True, False]))["image_auroc"] == 0.0


def test_each_region_weighs_the_same() -> None:
    masks = np.zeros((1, 20, 20), bool)
    masks[0, 1, 1] = True  # one pixel
    masks[0, 10:18, 10:18] = True  # sixty-four
    maps = np.zeros((1, 20, 20))
    maps[0, 1, 1] = 1.0
    maps[0, 0, 10] = maps[0, 0, 12] = 0.0
    tied_part = 0.5 * 0.5 * 0.3  # the other region rises along the diagonal
    assert aupro(maps, masks) == pytest.approx(0.5 + tied_part)


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    masks = np.zeros((1, 9, 9), bool)
    masks[0, 2, 2] = masks[0, 3, 3] = masks[0, 4, 2] = True
    maps = masks.astype(float)
    maps[0, 2, 2] = -1.0
    assert label(masks[0])[1] == 3  # with edges only, there would be three
    assert aupro(maps, masks) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "labels", [np.zeros(4, bool), np.ones(4, bool), np.zeros(0, bool)], ids=["good", "bad", "none"]
)
def test_one_class_alone_gives_nan(labels: np.ndarray) -> None:
    got = evaluate(np.arange(len(labels)) / 4, labels)
    assert all(math.isnan(v) for v in got.values())


def test_no_masks_leave_only_the_pixel_figures_open() -> None:
    got = evaluate(np.array([0.0, 1.0]), np.array([False, True]), np.zeros((2, 4, 4)), None)
    assert {k for k, v in got.items() if math.isnan(v)} == {"pixel_auroc", "pixel_ap", "aupro", "pixel_f1"}
    got = evaluate(np.array([0.0, 1.0]), np.array([False, True]), np.zeros((2, 4, 4)), np.zeros((2, 4, 4), bool))
    assert math.isnan(got["pixel_auroc"]) and math.isnan(got["aupro"]) and got["image_f1"] == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ConfigError, match="NaN or infinity"):
        evaluate(np.array([0.0, bad]), np.array([False, True]))
    maps = np.zeros((2, 3, 3))
    maps[1, 2, 2] = bad
    with pytest.raises(ConfigError, match="NaN or infinity"):
        evaluate(np.array([0.0, 1.0]), np.array([False, True]), maps, maps > 1)


def test_wrong_shapes_and_types_are_refused() -> None:
    with pytest.raises(ConfigError, match="same shape"):
        auroc(np.zeros(3), np.zeros(4, bool))
    with pytest.raises(ConfigError, match="3 maps for 2 scores"):
        evaluate(np.zeros(2), np.zeros(2, bool), np.zeros((3, 2, 2)), np.zeros((3, 2, 2), bool))
    with pytest.raises(ConfigError, match="bool"):
        auroc(np.zeros(3), np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="real numbers"):
        auroc(np.zeros(3, complex), np.zeros(3, bool))
    with pytest.raises(ConfigError, match="limit"):
        aupro(np.zeros((1, 2, 2)), np.zeros((1, 2, 2), bool), 0.0)


def test_the_input_is_left_as_it_was() -> None:
    rng = np.random.default_rng(0)
    maps, masks = rng.normal(size=(2, 16, 16)).astype(np.float32), rng.random((2, 16, 16)) < 0.1
    before = maps.copy(), masks.copy()
    evaluate(maps.max((1, 2)), masks.any((1, 2)), maps, masks)
    assert np.array_equal(maps, before[0]) and np.array_equal(masks, before[1])
