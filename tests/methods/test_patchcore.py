"""PatchCore against scikit-learn and loops in numpy: selection, weights, the moving bank, the gate; and every form
through the conformance suite."""

import numpy as np
import pytest
import torch
from everline.methods import conformance
from everline.methods.conformance import same
from everline.methods.detector import State
from everline.methods.errors import ConfigError, StateError
from everline.methods.neighbours import farthest_first, nearest
from everline.methods.patchcore import PatchCore, moved, rarity
from everline.methods.registry import build, restore
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

CHANNELS, SIDE = 6, 4
PATCHES = SIDE * SIDE


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(count: int, seed: int) -> Tensor:
    return drawn(seed, count, CHANNELS, SIDE, SIDE)


def rows(images: Tensor) -> Tensor:
    return images.flatten(2).mT.flatten(0, 1)


def learned(*parts: Tensor, **given: float | str) -> PatchCore:
    detector = PatchCore(**{"size": 32, "sigma": 0.0, "first": 3, **given})  # type: ignore[arg-type]
    for part in parts:
        for one in part:
            detector.learn(one[None])
    return detector


@pytest.mark.parametrize("check", conformance.CHECKS)
@pytest.mark.parametrize("form", ["ema", "pseudo"])
def test_every_form_conforms(form: str, check: str) -> None:
    small = {"pool": 1000, "memory": 150}
    conformance.CHECKS[check](lambda: build("patchcore", size=conformance.SIZE, form=form, **small))


def test_with_all_patches_the_map_is_the_nearest_neighbour_of_sklearn() -> None:
    seen, asked = features(5, 1), features(2, 2)
    detector = learned(seen, ratio=1)
    detector._finish = lambda patches: patches  # type: ignore[method-assign, assignment, return-value]
    want = NearestNeighbors(n_neighbors=1).fit(rows(seen)).kneighbors(rows(asked))[0]
    detector.neighbours = 0
    np.testing.assert_allclose(np.asarray(detector.score(asked)).ravel(), want.ravel(), rtol=1e-3)


def test_image_score_is_weighed_as_in_the_paper() -> None:
    seen, asked = features(5, 3), features(3, 4)
    tree = NearestNeighbors(n_neighbors=9).fit(rows(seen))
    want = []
    for image in asked:
        away, row = (part[:, 0] for part in tree.kneighbors(rows(image[None])))
        worst = int(away.argmax())
        around = tree.kneighbors(rows(seen)[row[worst]][None])[1][0]
        others = np.linalg.norm(rows(seen)[around] - rows(image[None])[worst], axis=1)
        want.append((1 - np.exp(away[worst]) / np.exp(others).sum()) * away[worst])
    np.testing.assert_allclose(learned(seen, ratio=1).score(asked).image, want, rtol=1e-3)


def test_weights_of_far_patches_are_numbers() -> None:
    weight = float(rarity(torch.full((CHANNELS,), 1e4), drawn(5, 20, CHANNELS), 9))
    assert 0 <= weight <= 1


def test_weight_falls_where_one_row_is_near_and_its_neighbours_are_far() -> None:
    patch = torch.zeros(2)
    dense = torch.tensor([[1.0, 0], [0.99, 0.1], [0.99, -0.1]])
    sparse = torch.tensor([[1.0, 0], [8.0, 8], [8.0, -8]])
    assert rarity(patch, dense, 3) == pytest.approx(2 / 3, abs=0.01)
    assert rarity(patch, sparse, 3) > 0.99


def test_farthest_first_is_the_greedy_loop() -> None:
    points = drawn(6, 60, 3).numpy()
    known = drawn(7, 5, 3).numpy()
    want, left = [], np.linalg.norm(points[:, None] - known, axis=2).min(1)
    for _ in range(12):
        want.append(int(left.argmax()))
        left = np.minimum(left, np.linalg.norm(points - points[want[-1]], axis=1))
    tensor = torch.from_numpy(points)
    got = farthest_first(tensor, 12, nearest(tensor, torch.from_numpy(known)))
    assert got.tolist() == sorted(want)


def test_farthest_first_begins_with_the_first_and_takes_none_twice() -> None:
    assert farthest_first(torch.zeros(9, 2), 4).unique().numel() == 4
    assert farthest_first(torch.tensor([[0.0], [1], [5], [9]]), 2).tolist() == [0, 3]
    assert farthest_first(torch.zeros(3, 2), 7).tolist() == [0, 1, 2]


def test_the_bank_has_the_share_that_was_asked_for_up_to_memory() -> None:
    for ratio, memory, want in ((0.25, 1000, 40), (0.25, 30, 30), (1, 1000, 160), (1e-6, 1000, 1)):
        detector = learned(features(10, 8), ratio=ratio, memory=memory)
        detector.score(features(1, 9))
        assert detector._selected is not None
        assert len(detector._selected) == want


def test_the_coreset_covers_better_than_chance() -> None:
    seen = features(30, 10)
    detector = learned(seen, sketch=CHANNELS)
    detector.score(seen[:1])
    assert detector._selected is not None
    chance = rows(seen)[torch.randperm(30 * PATCHES, generator=torch.Generator().manual_seed(1))[:48]]
    assert nearest(rows(seen), detector._selected).max() < 0.9 * nearest(rows(seen), chance).max()


def test_a_full_pool_is_a_uniform_sample_of_the_stream() -> None:
    stream = features(200, 11)
    stream[:, 0] = torch.arange(200.0)[:, None, None]  # each patch says when it came
    when = learned(stream, pool=800)._pool[:, 0]
    assert len(when) == 800
    quarters = np.histogram(when, bins=4, range=(0, 200))[0]
    assert quarters.min() > 160  # 200 each by chance, deviation 11
    assert quarters.max() < 240


def test_the_pool_holds_every_patch_while_there_is_room() -> None:
    seen = features(5, 12)
    assert torch.equal(learned(seen, pool=5 * PATCHES)._pool, rows(seen))


def test_batches_are_learned_image_by_image() -> None:
    for form in ("offline", "ema", "pseudo"):
        seen, whole = features(8, 13), learned(form=form)
        whole.learn(seen)
        assert same(whole.state(), learned(seen, form=form).state())


def test_moved_is_the_sequential_rule() -> None:
    bank, patches = drawn(14, 7, CHANNELS).double(), drawn(15, 40, CHANNELS).double()
    owner = NearestNeighbors(n_neighbors=1).fit(bank).kneighbors(patches)[1].ravel()
    want = bank.clone()
    for patch, row in zip(patches, owner, strict=True):
        want[row] = 0.7 * want[row] + 0.3 * patch
    np.testing.assert_allclose(moved(bank, patches, 0.7), want, rtol=1e-9)


def test_rows_that_nothing_is_near_stay() -> None:
    bank = torch.tensor([[0.0, 0], [100, 100]])
    after = moved(bank, torch.ones(3, 2), 0.5)
    assert torch.equal(after[1], bank[1])
    assert torch.equal(after[0], torch.full((2,), 0.875))


def test_ema_follows_a_drift_and_full_momentum_does_not() -> None:
    first, later = features(3, 16), features(40, 17) + 5
    moving, still = learned(first, later, form="ema"), learned(first, later, form="ema", momentum=1)
    assert torch.allclose(still._bank, learned(first, form="ema")._bank, atol=1e-5)
    assert moving.score(later[:5]).image.mean() < 0.5 * still.score(later[:5]).image.mean()
    assert len(moving._bank) == len(still._bank)


def test_the_first_images_are_the_bank_and_the_pool_goes() -> None:
    for form in ("ema", "pseudo"):
        waiting, begun = learned(features(2, 18), form=form), learned(features(3, 18), form=form)
        assert (len(waiting._bank), len(waiting._pool)) == (0, 2 * PATCHES)
        assert (len(begun._bank), len(begun._pool)) == (round(0.1 * 3 * PATCHES), 0)


def test_threshold_is_the_highest_score_of_a_first_image_without_its_own_rows() -> None:
    seen = features(3, 19)
    want = []
    for index in range(3):
        rest = learned(torch.cat([seen[:index], seen[index + 1 :]]), ratio=1)
        want.append(float(rest.score(seen[index][None]).image))
    detector = learned(seen, form="pseudo", ratio=1, gate=1.5)
    assert detector._threshold == pytest.approx(1.5 * max(want), rel=1e-5)


def test_pseudo_learns_what_looks_normal_and_refuses_the_rest() -> None:
    detector = learned(features(10, 20), form="pseudo", first=10)
    bank = detector._bank
    done = detector.learn(torch.cat([features(1, 21) * 0.5, features(1, 22) + 20]))
    assert (done.images, done.detail["refused"]) == (1, 1.0)
    assert done.admitted is not None and done.admitted.flatten(1).float().mean(1).tolist() == [1.0, 0.0]
    assert done.kept == len(bank) + round(0.1 * PATCHES)
    assert float(detector._bank.max()) < 10


def test_an_open_gate_lets_outliers_in() -> None:
    odd = features(1, 23) + 20
    detector = learned(features(10, 20), odd, form="pseudo", first=10, gate=100)
    assert float(detector._bank.max()) > 15


def test_pseudo_adds_the_patch_that_the_bank_knows_least() -> None:
    seen, later = features(10, 20), features(1, 31)
    later[0, :, 1, 3] += 8
    detector = learned(seen, later, form="pseudo", first=10, gate=100, ratio=0.05)
    assert len(detector._bank) == 8 + 1
    assert torch.equal(detector._bank[-1], later[0, :, 1, 3])


def test_a_full_bank_is_cut_back() -> None:
    detector = learned(features(3, 24), form="pseudo", memory=10, gate=100)
    sizes = [detector.learn(one[None]).kept for one in features(12, 25)]
    assert max(sizes) <= 10
    assert min(sizes[3:]) == 8


def test_first_images_that_do_not_fit_the_pool_are_refused() -> None:
    with pytest.raises(ConfigError, match="first 3 images of 16 patches do not fit a pool of 47"):
        learned(features(1, 26), form="ema", pool=47)
    learned(features(1, 26), pool=47)


@pytest.mark.parametrize(("given", "message"), [({"neighbours": 1}, "0 or 2"), ({"first": 1}, "2 or more")])
def test_parameters_that_make_no_sense_are_refused(given: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        learned(form="pseudo", **given)


def test_another_shape_is_refused() -> None:
    detector = learned(features(3, 27))
    for verb in (detector.learn, detector.score):
        with pytest.raises(ConfigError, match=r"expected features \(6, 4, 4\)"):
            verb(torch.zeros(1, CHANNELS, SIDE, SIDE + 1))


@pytest.mark.parametrize(("form", "count"), [("offline", 4), ("ema", 2), ("ema", 5), ("pseudo", 5)])
def test_a_restored_one_scores_and_learns_the_same(form: str, count: int) -> None:
    detector, asked = learned(features(count, 28), form=form), features(2, 29)
    twin = restore(detector.state())
    assert torch.equal(detector.score(asked).maps, twin.score(asked).maps)
    detector.learn(asked)
    twin.learn(asked)
    assert torch.equal(detector.score(asked).image, twin.score(asked).image)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keys", torch.zeros(3, dtype=torch.float64)),
        ("bank", torch.zeros(2, CHANNELS)),
        ("bank", torch.zeros(0, CHANNELS + 1)),
        ("pool", torch.zeros(3 * PATCHES, CHANNELS, dtype=torch.float64)),
        ("grid", torch.tensor([0, 4])),
        ("taken", torch.tensor(0)),
    ],
)
def test_states_that_contradict_themselves_are_refused(name: str, value: Tensor) -> None:
    state = learned(features(3, 30)).state()
    with pytest.raises(StateError, match="incomplete or misshapen"):
        learned().load_state(State({**state.tensors, name: value}, state.meta))
