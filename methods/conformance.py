"""What every detector must do, as ordinary functions: one parametrised test runs each on every method.

A check takes `make`, which builds a fresh detector of the method under test (small: 64-pixel images), and
raises AssertionError. Known failures are (method, check) pairs with a reason, in the test that runs these.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import params
from .detector import Detector, State
from .errors import ConfigError, EverlineError, NotLearned, StateError
from .registry import build, restore

Make = Callable[[], Detector]
SIZE = 64
EPOCHS = 8  # at most, of a method that goes through the images several times: some seconds on one core


def images(count: int, seed: int, defect: bool = False) -> Tensor:
    """uint8 (count, 3, 64, 64): a brushed texture with a bright disc that moves by a pixel or two.

    A defect is a dark scratch somewhere on the disc.
    """
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:SIZE, :SIZE]
    out = np.empty((count, 3, SIZE, SIZE), np.uint8)
    for one in out:
        y, x = 32 + rng.normal(0, 1.5, 2)
        disc = 60.0 * ((rows - y) ** 2 + (cols - x) ** 2 < 20**2)
        picture = 90 + disc + rng.normal(0, 8, (SIZE, 1)) + rng.normal(0, 4, (SIZE, SIZE))
        if defect:
            top, left = rng.integers(18, 38, 2)
            picture[top : top + 10, left : left + 4] -= 70
        one[:] = np.clip(picture, 0, 255).astype(np.uint8)
    return torch.from_numpy(out)


def taught(make: Make, count: int = 12, seed: int = 1) -> Detector:
    """A detector that learned `count` normal images, one at a time, the first few as one batch where it needs that."""
    detector = make()
    for one in stream(detector, count, seed):
        detector.learn(one)
    return detector


def stream(detector: Detector, count: int, seed: int = 1) -> Iterator[Tensor]:
    """The features of `count` normal images, one image at a time."""
    for one in images(count, seed):
        yield detector.embed(one[None])


def same(a: State, b: State) -> bool:
    """Equal to the last bit, metadata included."""
    return (
        a.meta == b.meta
        and a.tensors.keys() == b.tensors.keys()
        and all(t.dtype == b.tensors[k].dtype and torch.equal(t, b.tensors[k]) for k, t in a.tensors.items())
    )


def check_parameters_are_the_configuration(make: Make) -> None:
    """Sweeps and run records rebuild a detector from `params`."""
    detector = make()
    again = build(detector.name, **detector.params)
    assert again.params == detector.params
    assert json.loads(json.dumps(detector.params))
    assert detector.name in type(detector).name and repr(detector).startswith(type(detector).__name__)


def check_unknown_parameter_is_refused_by_name(make: Make) -> None:
    """A misspelt option must never be ignored."""
    try:
        build(make().name, sede=1)
    except ConfigError as error:
        assert "sede" in str(error) and "seed" in str(error)
    else:
        raise AssertionError("an unknown parameter was accepted")


def check_out_of_range_is_refused_by_name(make: Make) -> None:
    """The message names the parameter and what came."""
    try:
        build(make().name, size=-3)
    except ConfigError as error:
        assert "size" in str(error) and "-3" in str(error)
    else:
        raise AssertionError("size=-3 was accepted")


def check_search_space(make: Make) -> None:
    """A sweep tries what is allowed, the default among it, and nothing that the method refuses to be built with."""
    detector = make()
    rows = {name: (kind, default, spec) for name, kind, default, spec in params.table(type(detector))}
    for name, (kind, default, spec) in rows.items():
        for value in spec.search:
            params.check(value, kind, spec, detector.name, name)
        if params.ranged(kind, spec):
            least, most = spec.search
            assert least <= default <= most and least < most, f"{name}: {default} is not in {spec.search}"
            assert least > 0 or not spec.log, f"{name}: a logarithmic scale never gets to {least}"
        elif spec.search:
            assert default in spec.search, f"{name}: {default} is not among {spec.search}"
        if spec.when is not None:
            _check_condition(name, rows, detector.name)
    memory = detector.traits.memory
    assert not memory or (rows[memory][0] in (int, float) and rows[memory][2].search), f"{memory} is no size to search"
    for corner in corners(detector):
        build(detector.name, **{**detector.params, **corner})


def _check_condition(name: str, rows: dict[str, tuple[Any, Any, params.Param]], who: str) -> None:
    """What a parameter hangs on is another one that may have such values, and in the end hangs on nothing itself."""
    found, spec = [name], rows[name][2]
    while spec.when is not None:
        on, values = spec.when
        assert on in rows and on not in found, f"{found[-1]} hangs on {on}"
        assert values and spec.search, f"{found[-1]}: a condition without values, or of what is never searched"
        for value in values:
            params.check(value, rows[on][0], rows[on][2], who, on)
        found, spec = [*found, on], rows[on][2]


def corners(detector: Detector) -> Iterator[dict[str, Any]]:
    """Parameters at the ends of what a sweep tries: each alone, then all at their first and all at their last."""
    searched = {name: spec.search for name, _, _, spec in params.table(type(detector)) if spec.search}
    for name, values in searched.items():
        yield from ({name: value} for value in values)
    for end in (0, -1):
        yield {name: values[end] for name, values in searched.items()}


def check_scoring_unlearned_is_an_error_or_finite(make: Make) -> None:
    """A line starts with no images: the detector says so, or answers, but never invents a NaN."""
    detector = make()
    try:
        scores = detector.score(detector.embed(images(1, 2)))
    except NotLearned:
        assert not detector.ready
    else:
        assert detector.ready and bool(torch.isfinite(scores.image).all())


def check_shapes_and_dtypes(make: Make) -> None:
    """The contract's shapes: (B,) and (B, S, S), float32, finite."""
    detector = taught(make)
    scores = detector.score(detector.embed(images(3, 2)))
    assert scores.image.shape == (3,) and scores.image.dtype == torch.float32
    assert scores.maps.shape == (3, SIZE, SIZE) and scores.maps.dtype == torch.float32
    assert bool(torch.isfinite(scores.image).all()) and bool(torch.isfinite(scores.maps).all())


def check_scoring_changes_nothing(make: Make) -> None:
    """`score` is pure: same state before and after, same answer twice."""
    detector = taught(make)
    features = detector.embed(images(2, 3))
    before = detector.state()
    first, second = detector.score(features), detector.score(features)
    assert same(before, detector.state())
    assert torch.equal(first.image, second.image) and torch.equal(first.maps, second.maps)


def check_scores_do_not_depend_on_the_batch(make: Make) -> None:
    """An image's score is its own, whoever stands beside it."""
    detector = taught(make)
    features = detector.embed(images(4, 4))
    whole = detector.score(features)
    single = torch.cat([detector.score(f[None]).image for f in features])
    assert torch.allclose(whole.image, single, rtol=1e-3, atol=1e-4)


def check_learning_keeps_no_reference(make: Make) -> None:
    """Callers reuse their buffers."""
    a, b = make(), make()
    for fa, fb in zip(stream(a, 6), stream(b, 6), strict=True):
        buffer = fa.clone()  # what a backbone gave under inference mode may not be written to
        a.learn(buffer)
        buffer.fill_(7)
        b.learn(fb)
    assert same(a.state(), b.state())


def check_learning_leaves_its_input_alone(make: Make) -> None:
    """The caller's features are the caller's."""
    detector = taught(make, 3)
    features = detector.embed(images(1, 5))
    copy = features.clone()
    detector.learn(features)
    assert torch.equal(features, copy)


def check_same_seed_same_state(make: Make) -> None:
    """A rebuild from (method, parameters, seed, log) must give equal bits."""
    assert same(taught(make).state(), taught(make).state())


def check_global_generator_is_left_alone(make: Make) -> None:
    """Chance comes from the seed parameter and from nowhere else."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    detector = taught(make, 4)
    detector.score(detector.embed(images(1, 6)))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert same(detector.state(), taught(make, 4).state())


def check_resumes_bit_for_bit(make: Make) -> None:
    """Stop, save, load elsewhere, go on: as if never stopped, whenever it was, and scored in between or not."""
    whole = make()
    parts: list[Detector] = [make()]
    for index, one in enumerate(stream(whole, 20)):
        whole.learn(one)
        parts[-1].learn(one)
        if index in (0, 6, 13):
            parts[-1].score(one)
            parts.append(restore(parts[-1].state(), whole.device))
    assert same(whole.state(), parts[-1].state())


def check_tasks_are_remembered(make: Make) -> None:
    """Who is told of products goes on, after a restart, with the one it was at."""
    whole = make()
    parts: list[Detector] = [make()]
    seen = stream(whole, 18)
    for task in ("a", "b", "a"):
        whole.begin_task(task)
        parts[-1].begin_task(task)
        for _ in range(6):
            one = next(seen)
            whole.learn(one)
            parts[-1].learn(one)
            if whole.images_learned % 4 == 0:
                parts.append(restore(parts[-1].state(), whole.device))
    assert whole.tasks == ["a", "b"] and whole.task == "a"
    assert same(whole.state(), parts[-1].state())


def check_a_task_may_be_named_when_scoring(make: Make) -> None:
    """Naming the product never breaks scoring, not even one that nobody has learned; and it changes no state."""
    detector = make()
    seen = stream(detector, 16)
    for task in ("a", "b"):
        detector.begin_task(task)
        for _ in range(8):
            detector.learn(next(seen))
    one, before = detector.embed(images(2, 4)), detector.state()
    inferred = detector.score(one)
    assert (inferred.tasks is not None) == detector.infers_tasks
    assert inferred.tasks is None or set(inferred.tasks.tolist()) <= {0, 1}
    for task in ("a", "b", "stranger"):
        scores = detector.score(one, task=task)
        assert bool(torch.isfinite(scores.image).all()) and scores.maps.shape == (2, SIZE, SIZE)
        assert scores.tasks is None or task == "stranger"
    assert torch.equal(detector.score(one, task="stranger").image, inferred.image)
    assert same(before, detector.state())


def check_older_states_load(make: Make) -> None:
    """A parameter that came into a method later counts as its default, and there were no tasks once."""
    detector = taught(make, 4)
    state = detector.state()
    usual = {name: default for name, _, default, _ in params.table(type(detector))}
    left = {name: value for name, value in detector.params.items() if value != usual[name]}
    meta = {key: value for key, value in state.meta.items() if key not in ("task", "tasks")}
    again = make()
    again.load_state(State(state.tensors, {**meta, "params": {**left, "seed": detector.seed}}))
    assert same(again.state(), state)


def check_empty_state_loads(make: Make) -> None:
    """A line may crash before its first image."""
    detector = make()
    fresh = restore(detector.state(), detector.device)
    one = detector.embed(images(1, 7))
    detector.learn(one)
    fresh.learn(one)
    assert same(detector.state(), fresh.state())


def check_a_copy_is_independent(make: Make) -> None:
    """A published version must not change while the line learns on; nor does it matter who loads it."""
    detector = taught(make, 4)
    kept = detector.state()
    with torch.inference_mode():
        copy = restore(kept, detector.device)
    for one in stream(copy, 3, seed=8):
        copy.learn(one)
    assert same(kept, detector.state()) and not same(kept, copy.state())


def check_state_is_flat_and_plain(make: Make) -> None:
    """safetensors and strict JSON must be able to hold it."""
    state = taught(make).state()
    assert all(isinstance(t, Tensor) and t.is_contiguous() and not t.requires_grad for t in state.tensors.values())
    assert all(t.device.type == "cpu" for t in state.tensors.values())
    assert state.meta["images_learned"] == 12
    json.dumps(state.meta, allow_nan=False)


def check_foreign_states_are_refused(make: Make) -> None:
    """Another method's, other parameters', an incomplete and a misshapen state."""
    detector = taught(make, 3)
    good = detector.state()
    key = next(k for k in good.tensors if k != "rng")
    bad = [
        State(good.tensors, {**good.meta, "method": "another"}),
        State(good.tensors, {**good.meta, "params": {**detector.params, "seed": detector.seed + 1}}),
        State(good.tensors, {**good.meta, "format": 99}),
        State({k: t for k, t in good.tensors.items() if k != key}, good.meta),
        State({**good.tensors, "stranger": torch.zeros(1)}, good.meta),
        State({**good.tensors, key: torch.zeros(2, 3, 5, 7)}, good.meta),
    ]
    for state in bad:
        try:
            make().load_state(state)
        except StateError:
            continue
        raise AssertionError(f"accepted {sorted(state.tensors)} {state.meta}")


def check_bad_features_are_refused(make: Make) -> None:
    """NaN, an empty batch and a wrong rank are errors that leave the state as it was."""
    detector = taught(make, 3)
    good = detector.embed(images(1, 9))
    before = detector.state()
    for bad in (torch.full_like(good, float("nan")) if good.is_floating_point() else good[0], good[:0], good[0]):
        for verb in (detector.score, detector.learn):
            try:
                verb(bad)
            except EverlineError:
                continue
            raise AssertionError(f"{verb.__name__} accepted features of shape {tuple(bad.shape)}")
    assert same(before, detector.state())


def check_memory_is_bounded(make: Make) -> None:
    """A line runs for years. Methods without the trait are not asked."""
    if not make().traits.bounded_memory:
        return
    detector = taught(make, 40)
    early = detector.state().nbytes
    for one in stream(detector, 60, seed=10):
        detector.learn(one)
    assert detector.state().nbytes <= early * 1.05


def trained(make: Make, count: int = 40, seed: int = 1) -> Detector:
    """A detector that learned them as its paper does: in its batches, and more than once where the paper does so."""
    detector = make()
    for _ in range(min(detector.traits.epochs, EPOCHS)):
        for some in images(count, seed).split(detector.traits.batch):
            detector.learn(detector.embed(some))
    return detector


def check_finds_an_obvious_defect(make: Make) -> None:
    """Higher is worse: ten bad images stand above ten good ones, after forty images, or some epochs over them."""
    detector = trained(make)
    good = detector.score(detector.embed(images(10, 11))).image
    bad = detector.score(detector.embed(images(10, 12, defect=True))).image
    wins = (bad[:, None] > good[None]).float().mean()
    assert wins >= 0.9, f"image AUROC {wins:.3f} on an easy defect"


CHECKS: dict[str, Callable[[Make], None]] = {
    name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")
}
