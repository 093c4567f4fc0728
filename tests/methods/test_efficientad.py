"""EfficientAD's losses, held-out images and quantiles against numpy and by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from everline.methods.conformance import images, same
from everline.methods.detector import State
from everline.methods.efficientad import EfficientAD, hardest, jittered
from everline.methods.errors import ConfigError, StateError, WeightsError
from everline.methods.pdn import scaled
from everline.methods.registry import restore
from everline.methods.teacher import Teacher, textures
from safetensors.torch import save_file
from torch import Tensor


def small(**params: Any) -> EfficientAD:
    return EfficientAD(**{"size": 64, "teacher": "none", "width": 0.05, "lr": 1e-3, "holdout": 0.0, **params})


def teacher_file(path: Path, pictures: int = 3, **changed: str) -> Path:
    made = Teacher.random("small", 0.05, torch.Generator().manual_seed(1))
    made = replace(made, pictures=textures(pictures, 32, torch.Generator().manual_seed(2)))
    save_file(made.tensors(), path, {**made.metadata(), **changed})
    return path


def weights(detector: EfficientAD) -> dict[str, Tensor]:
    return {k: t for k, t in detector.state().tensors.items() if k.startswith("weights.")}


def alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(t, b[k]) for k, t in a.items())


# -- losses


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 0.999])
def test_hard_features_are_those_at_or_above_the_quantile(quantile: float) -> None:
    values = torch.rand(2, 5, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    level = np.quantile(values.numpy(), quantile)
    want = values.numpy()[values.numpy() >= level].mean()
    assert float(hardest(values, quantile)) == pytest.approx(want, rel=1e-12)


def test_ties_at_the_quantile_are_all_hard() -> None:
    assert float(hardest(torch.tensor([0.0, 1.0, 1.0, 1.0, 3.0]), 0.9)) == 3
    assert float(hardest(torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]), 0.9)) == 1


def test_easy_features_have_no_gradient() -> None:
    values = torch.arange(100.0, requires_grad=True)
    (slope,) = torch.autograd.grad(hardest(values, 0.95), values)
    assert slope.nonzero()[:, 0].tolist() == [95, 96, 97, 98, 99]
    assert float(slope.sum()) == pytest.approx(1)


def test_loss_terms_are_those_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    image, picture = images(1, 3), images(1, 4)
    detector = small(hard=0.9, penalty=2.0)
    detector.learn(images(1, 5))
    monkeypatch.setattr(Teacher, "picture", lambda *_: picture)
    monkeypatch.setattr("everline.methods.efficientad.jittered", lambda some, _: some.float())
    monkeypatch.setattr("everline.methods.pdn._dropout", lambda x, _: 1.0)
    nets, c = detector._nets, detector._nets.teacher.channels  # type: ignore[union-attr]
    with torch.no_grad():
        x, p = scaled(image), scaled(picture)
        t, s, q = nets.teacher(x).numpy(), nets.student(x).numpy(), nets.student(p).numpy()  # type: ignore[union-attr]
        a = nets.autoencoder(x).numpy()  # type: ignore[union-attr]
    local = (t - s[:, :c]) ** 2
    want = {
        "hard": local[local >= np.quantile(local, 0.9)].mean(),
        "penalty": 2 * (q[:, :c] ** 2).mean(),
        "autoencoder": ((t - a) ** 2).mean(),
        "student_autoencoder": ((a - s[:, c:]) ** 2).mean(),
    }
    detail = dict(detector.learn(image).detail)
    assert detail.pop("held_out") == 0
    assert detail.pop("loss") == pytest.approx(sum(want.values()), rel=1e-4)
    assert detail == pytest.approx(want, rel=1e-4)


def test_the_student_does_not_move_the_autoencoder() -> None:
    """Only the loss against the teacher trains the autoencoder: without it weights would stay as decay leaves them."""
    detector = small(penalty=0.0)
    detector.learn(images(1, 1))
    nets = detector._nets
    assert nets is not None
    rebuilt = nets.autoencoder(scaled(images(1, 2)))
    apart = (rebuilt.detach() - nets.student(scaled(images(1, 2)), nets.teacher.channels)).square().mean()
    slopes = torch.autograd.grad(apart, list(nets.autoencoder.parameters()), allow_unused=True)
    assert all(slope is None for slope in slopes)


def test_no_penalty_where_it_is_off() -> None:
    assert "penalty" not in small(penalty=0.0).learn(images(1, 1)).detail
    assert small().learn(images(1, 1)).detail["penalty"] > 0


def test_a_batch_is_one_step() -> None:
    detector = small()
    detector.learn(images(3, 1))
    assert detector.state().tensors["adam.steps"].tolist() == [1]


def test_training_lowers_the_losses() -> None:
    detector = small(lr=3e-3)
    details = [detector.learn(one[None]).detail for one in images(40, 1)]
    for name in ("hard", "autoencoder"):
        first, last = (sum(d[name] for d in some) for some in (details[:10], details[-10:]))
        assert last < 0.9 * first, name


def test_the_penalty_keeps_the_student_small_on_other_pictures() -> None:
    found = []
    for penalty in (0.0, 10.0):
        detector = small(lr=3e-3, penalty=penalty)
        for one in images(30, 1):
            detector.learn(one[None])
        pictures = scaled(textures(4, 64, torch.Generator().manual_seed(5)))
        assert detector._nets is not None
        said = detector._nets.student(pictures, 0, detector._nets.teacher.channels)
        found.append(float(said.detach().square().mean()))
    assert found[1] < 0.5 * found[0]


def test_jitter_is_torchvisions() -> None:
    from torchvision.transforms import functional

    ways = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    some = images(12, 1)
    made, own = jittered(some, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(0)
    kinds = set()
    for one, mine in zip(some, made, strict=True):
        kind = int(torch.randint(3, (1,), generator=own))
        factor = float(torch.empty(1).uniform_(0.8, 1.2, generator=own))
        torch.testing.assert_close(mine / 255, ways[kind](one / 255, factor), atol=2e-4, rtol=0)
        kinds.add(kind)
    assert kinds == {0, 1, 2}


# -- held-out images and quantiles


def held_out(detector: EfficientAD, count: int = 1) -> Tensor:
    """Images that it holds out."""
    found = [one for one in images(200, 9) if detector._holds_out(one)]
    return torch.stack(found[:count])


def test_a_held_out_image_trains_nothing_in_no_epoch() -> None:
    detector = small(holdout=0.1)
    trained = images(200, 9)[[not detector._holds_out(one) for one in images(200, 9)]]
    detector.learn(trained[:2])
    before = weights(detector)
    for _ in range(3):
        learned = detector.learn(held_out(detector))
    assert alike(before, weights(detector))
    assert learned.detail == {"held_out": 1.0}
    assert detector.state().tensors["adam.steps"].tolist() == [1]


def test_a_mixed_batch_trains_on_the_others_alone() -> None:
    a, b = small(holdout=0.1), small(holdout=0.1)
    held = held_out(a)
    others = torch.stack([one for one in images(20, 8) if not a._holds_out(one)])[:2]
    a.learn(torch.cat([held, others]))
    b.learn(others)
    assert alike(weights(a), weights(b))


def test_the_share_held_out_is_the_parameter() -> None:
    detector = small(holdout=0.1)
    noise = torch.randint(256, (3000, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert sum(detector._holds_out(one) for one in noise) / 3000 == pytest.approx(0.1, abs=0.02)


def test_held_out_images_drive_out_the_training_images() -> None:
    detector = small(holdout=0.1)
    held = held_out(detector, 3)
    assert detector.learn(torch.stack([o for o in images(9, 8) if not detector._holds_out(o)])[:5]).kept == 5
    assert detector.learn(held[:2]).kept == 2
    detector.learn(torch.stack([o for o in images(9, 7) if not detector._holds_out(o)]))
    assert detector.learn(held[2:]).kept == 3


def test_held_out_images_set_the_quantiles() -> None:
    """At 64 pixels the ring keeps all 256 positions, so quantile a of these maps becomes 0 and b becomes .1."""
    detector = small(holdout=0.1)
    held = held_out(detector, 4)
    detector.learn(held)
    assert detector._nets is not None
    with torch.no_grad():
        maps = detector._nets.maps(scaled(held))
        normalised = detector._normalised(maps)
    for raw, done in zip(maps.transpose(0, 1).numpy(), normalised.transpose(0, 1).numpy(), strict=True):
        low, high = np.quantile(raw, 0.9), np.quantile(raw, 0.995)
        np.testing.assert_allclose(done, 0.1 * (raw - low) / (high - low), rtol=1e-3, atol=1e-5)
        assert np.quantile(done, 0.9) == pytest.approx(0, abs=1e-5)
        assert np.quantile(done, 0.995) == pytest.approx(0.1, abs=1e-5)


def test_fresh_quantiles_are_those_of_the_latest_held_out_images_now() -> None:
    detector = small(holdout=0.1, fresh=3)
    held = held_out(detector, 5)
    detector.learn(held)
    detector.learn(torch.stack([one for one in images(20, 8) if not detector._holds_out(one)]))
    assert detector._nets is not None
    with torch.no_grad():
        maps = detector._nets.maps(scaled(held[2:]))
        levels = np.quantile(detector._normalised(maps).transpose(0, 1).flatten(1).numpy(), [0.9, 0.995], axis=1)
    np.testing.assert_allclose(levels, [[0, 0], [0.1, 0.1]], atol=1e-5)


def test_fresh_pictures_go_with_the_state() -> None:
    detector = small(holdout=0.1, fresh=2)
    detector.learn(torch.cat([held_out(detector, 3), images(4, 8)]))
    detector.score(images(1, 2))
    again = restore(detector.state())
    assert torch.equal(detector.score(images(2, 2)).maps, again.score(images(2, 2)).maps)
    detector.learn(images(4, 6))
    again.learn(images(4, 6))
    assert same(detector.state(), again.state())
    assert torch.equal(detector.score(images(2, 2)).maps, again.score(images(2, 2)).maps)


def test_a_score_is_the_maximum_of_the_mean_of_both_maps() -> None:
    detector = small()
    detector.learn(images(4, 1))
    found = detector.score(images(2, 2))
    assert detector._nets is not None
    with torch.no_grad():
        mean = detector._normalised(detector._nets.maps(scaled(images(2, 2)))).mean(1)
    want = torch.nn.Upsample(64, mode="bilinear")(mean[:, None])[:, 0]
    torch.testing.assert_close(found.maps, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.image, found.maps.flatten(1).max(1).values)


def test_maps_that_never_differ_divide_by_nothing() -> None:
    detector = small()
    detector.learn(images(1, 1))
    detector._ring.fill_(0.25)
    detector._levels = None
    maps = torch.rand(1, 2, 16, 16)
    torch.testing.assert_close(detector._normalised(maps), 0.1 * (maps - 0.25))


def test_the_ring_is_bounded() -> None:
    detector = small()
    learned = [detector.learn(some) for some in images(70, 1).split(7)]
    assert [one.kept for one in learned][-2:] == [63, 64]


# -- teachers and states


def test_no_teacher_names_the_command() -> None:
    for verb in ("learn", "network_bytes"):
        detector = small(teacher="")
        with pytest.raises(WeightsError, match="everline pretrain teacher --images DIR --out FILE"):
            detector.learn(images(1, 1)) if verb == "learn" else detector.network_bytes
        assert not detector.ready


def test_a_state_loads_without_its_teacher_file(tmp_path: Path) -> None:
    file = teacher_file(tmp_path / "teacher")
    detector = small(teacher=str(file))
    detector.learn(images(2, 1))
    file.unlink()
    again = restore(detector.state())
    assert torch.equal(detector.score(images(2, 2)).maps, again.score(images(2, 2)).maps)
    detector.learn(images(2, 3))
    again.learn(images(2, 3))
    assert same(detector.state(), again.state())


def test_the_teacher_never_moves(tmp_path: Path) -> None:
    detector = small(teacher=str(teacher_file(tmp_path / "teacher")))
    found = []
    for one in images(3, 1):
        detector.learn(one[None])
        found.append({k: t for k, t in detector.state().tensors.items() if k.startswith("teacher.")})
    assert alike(found[0], found[2])
    assert "teacher.pictures" in found[0]


def test_its_pictures_are_what_the_penalty_draws(tmp_path: Path) -> None:
    teacher = Teacher.read(str(teacher_file(tmp_path / "teacher")), "small", 0.05)
    own = torch.Generator().manual_seed(0)
    drawn = {teacher.picture(32, own).numpy().tobytes() for _ in range(40)}
    assert drawn == {one.numpy().tobytes() for one in teacher.pictures}
    assert teacher.picture(64, own).shape == (1, 3, 64, 64)


def test_network_bytes_are_those_of_the_state() -> None:
    detector = small()
    before = detector.network_bytes
    detector.learn(images(1, 1))
    nets = [t for k, t in detector.state().tensors.items() if k.startswith(("weights.", "teacher.pdn."))]
    assert before == detector.network_bytes == sum(t.nbytes for t in nets)


def test_another_width_or_model_is_told_what_to_set(tmp_path: Path) -> None:
    file = str(teacher_file(tmp_path / "teacher"))
    for params in ({"width": 0.5}, {"model": "medium"}):
        with pytest.raises(WeightsError, match=r"set model=small width=0.05"):
            small(teacher=file, **params).learn(images(1, 1))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("mean", torch.zeros(3), "std must be"),
        ("std", torch.zeros(19), "above 0"),
        ("pdn.head.bias", torch.full((19,), float("nan")), "NaN"),
        ("pdn.head.bias", torch.zeros(19, dtype=torch.float64), "head.bias must be torch.float32"),
        ("pictures", torch.zeros(2, 3, 8, 8), "pictures must be uint8"),
        ("pictures", torch.zeros(2, 3, 1, 2000, dtype=torch.uint8), "pictures must be uint8"),
        ("stranger", torch.zeros(1), "stranger is no part"),
    ],
)
def test_a_wrong_teacher_file_is_refused(tmp_path: Path, name: str, value: Tensor, said: str) -> None:
    made = Teacher.random("small", 0.05, torch.Generator().manual_seed(1))
    save_file({**made.tensors(), name: value}, tmp_path / "teacher", made.metadata())
    with pytest.raises(WeightsError, match=said):
        Teacher.read(str(tmp_path / "teacher"), "small", 0.05)


def test_what_is_no_teacher_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not tensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    short = teacher_file(tmp_path / "short")
    short.write_bytes(short.read_bytes()[:-9])
    for name in ("text", "other", "short", "missing"):
        with pytest.raises(WeightsError, match="everline pretrain teacher"):
            Teacher.read(str(tmp_path / name), "small", 0.05)
    for changed in ({"model": "huge"}, {"width": "wide"}, {"format": "2"}):
        with pytest.raises(WeightsError, match="everline pretrain teacher"):
            Teacher.read(str(teacher_file(tmp_path / "odd", **changed)), "small", 0.05)


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everline.methods.teacher.MAX_BYTES", 1000)
    with pytest.raises(WeightsError, match="larger than 1,000 bytes"):
        Teacher.read(str(teacher_file(tmp_path / "teacher")), "small", 0.05)


def test_a_failed_first_image_leaves_nothing() -> None:
    detector = small(teacher="missing")
    with pytest.raises(WeightsError, match="not there"):
        detector.learn(images(1, 1))
    assert same(detector.state(), small(teacher="missing").state())


def test_a_state_with_a_bad_ring_is_refused() -> None:
    detector = small()
    detector.learn(images(1, 1))
    state = detector.state()
    bad = State({**state.tensors, "ring.place": torch.tensor([65, 0, 0, 0])}, state.meta)
    with pytest.raises(StateError, match="64 rows"):
        small().load_state(bad)


def test_only_images_are_taken() -> None:
    for bad in (torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)):
        with pytest.raises(ConfigError, match="expected images uint8"):
            small().embed(bad)
