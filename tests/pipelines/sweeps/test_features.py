"""Features that trials share: the same record with them as without, nothing embedded twice, nothing mixed up."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from everline.methods.backbones import Backbone
from everline.methods.detector import FeatureDetector
from everline.methods.errors import Corrupt, DataError
from everline.methods.registry import METHODS
from everline.pipelines.data.datasets import Task, read_folder
from everline.pipelines.data.drift import Drift
from everline.pipelines.data.fingerprint import digest, fingerprint
from everline.pipelines.protocols.judging import Features
from everline.pipelines.protocols.trial import Trial
from everline.pipelines.sweeps import features as module
from everline.pipelines.sweeps import sharing
from everline.pipelines.sweeps.features import Prepared, feature_key, prepare, store_folder, stored
from safetensors.torch import save_file
from torch import Tensor

SMALL: dict[str, Any] = {"size": 64, "weights": "none", "sigma": 1.0}
NAMES = ("disc", "a bolt, 50%", "ü.bolt")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> list[Task]:
    root = tmp_path_factory.mktemp("data")
    folders = [write_disc(root / name, 7, 3, 3, masks=True, product=n) for n, name in enumerate(NAMES)]
    return [read_folder(folder) for folder in folders]


@pytest.fixture(scope="module")
def images(tasks: list[Task]) -> dict[str, str]:
    return {task.name: fingerprint(task) for task in tasks}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tasks: list[Task], images: dict[str, str]) -> Path:
    """The stores of all tasks, as they look to a method of size 64."""
    root = tmp_path_factory.mktemp("features")
    for task in tasks:
        prepare(trial(), task, images[task.name], root)
    return root


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing can be embedded."""

    def embed(self: FeatureDetector, images: Tensor) -> Tensor:
        raise AssertionError("it embeds")

    monkeypatch.setattr(FeatureDetector, "embed", embed)


def trial(protocol: str = "online", method: str = "padim", options: Any = None, seeds: int = 1, **given: Any) -> Trial:
    return Trial(protocol, method, {**SMALL, **given}, options or {}, seeds)


def quiet(seed: int) -> Callable[[str, int, int], None]:
    return lambda stage, done, of: None


def figures(one: Trial, tasks: Sequence[Task], features: Features | None) -> str:
    """All of a record but its times. As text: NaN is equal to itself there."""
    if one.together:
        done, continued = one.on_all(tasks, quiet, features=features)
        runs = [replace(run, training_s=0.0, inference_ms=0.0) for run in (continued, *continued.runs)]
        sequence = repr([replace(runs[0], runs=[]), *runs[1:]])
    else:
        done, sequence = [one.on(tasks[0], quiet, features=features)], ""
    return repr([replace(task, ms_per_image={}) for task in done]) + sequence


FEWSHOT = {"shots": 3, "ratio": 2.0, "session": 5, "batch": 2}
REPLAY = {"strategy": "replay", "memory": 3, "order": "0,2,1,0"}
RUNS = [
    ("online", "padim", {}, 1),
    ("online", "coreset", {}, 2),
    ("offline", "coreset", {"shots": 3}, 1),
    ("fewshot", "kng", FEWSHOT, 1),
    ("continual", "padim", {"order": "2,0,1"}, 1),
    ("continual", "padim", REPLAY, 2),
    ("continual", "coreset", {"strategy": "replay", "memory": 3, "policy": "herding"}, 1),
]


@pytest.mark.parametrize(("protocol", "method", "options", "seeds"), RUNS)
def test_the_record_is_the_same_and_nothing_is_embedded_anew(
    tasks: list[Task],
    images: dict[str, str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    method: str,
    options: dict[str, Any],
    seeds: int,
) -> None:
    one = trial(protocol, method, options, seeds)
    mine = figures(one, tasks, None)
    monkeypatch.setattr(FeatureDetector, "embed", lambda *given: pytest.fail("it embeds"))
    found = stored(one, tasks if one.together else tasks[:1], images, folder)
    assert figures(one, tasks, found) == mine


@pytest.mark.usefixtures("blind")
def test_a_run_without_the_store_would_embed(tasks: list[Task]) -> None:
    with pytest.raises(AssertionError, match="it embeds"):
        figures(trial(), tasks, None)


def test_features_are_those_of_a_run_bit_by_bit(tasks: list[Task], images: dict[str, str], folder: Path) -> None:
    one, found = Features(trial().make(0)), stored(trial(), tasks, images, folder)
    assert found is not None
    for task in tasks:
        for path in (*task.train, *(sample.path for sample in task.test)):
            assert torch.equal(one.get(path), found.get(path)) and found.get(path).shape == (1, 176, 8, 8)


def test_drifted_images_are_embedded_and_clean_ones_are_not(
    tasks: list[Task], images: dict[str, str], folder: Path
) -> None:
    found, drift, path = stored(trial(), tasks, images, folder), Drift("noise", 25.0), tasks[0].train[0]
    assert found is not None
    drifted = found.get(path, drift)
    assert found._calls == 1 and torch.equal(drifted, Features(trial().make(0)).get(path, drift))
    assert not torch.equal(drifted, found.get(path)) and found._calls == 1
    one = trial("drift", options={"drift": ["blur"]})
    assert figures(one, tasks, found) == figures(one, tasks, None)


@pytest.mark.usefixtures("blind")
def test_an_image_out_of_a_memory_is_known_without_its_path(
    tasks: list[Task], images: dict[str, str], folder: Path
) -> None:
    found = stored(trial(), tasks, images, folder)
    assert found is not None
    path = tasks[1].train[2]
    assert torch.equal(found.of(path.read_bytes()), found.get(path))  # as after a resume, when nothing was read yet


@pytest.mark.usefixtures("blind")
def test_a_part_of_the_task_and_other_places_are_served_too(
    tasks: list[Task], images: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    moved = read_folder(shutil.copytree(tasks[0].train[0].parents[2], tmp_path / NAMES[0]))
    part = replace(moved, train=moved.train[3:], test=moved.test[::2])
    assert figures(trial(), [part], stored(trial(), [part], images, folder))


def test_what_is_stored_takes_no_room_in_memory(tasks: list[Task], images: dict[str, str], folder: Path) -> None:
    found = stored(trial(seeds=2), tasks, images, folder)
    assert found is not None
    before = found._room
    for path in tasks[0].train:
        found.get(path)
    assert found._room == before and not found._kept


def test_the_time_of_the_backbone_is_the_stores(tasks: list[Task], images: dict[str, str], folder: Path) -> None:
    found = stored(trial(), tasks, images, folder)
    assert found is not None
    means = [store.ms_per_image for store in found.stores]
    assert len(means) == 3 and all(0 < ms < math.inf for ms in means)
    assert found.clock.mean_ms("backbone") == pytest.approx(sum(means) / 3)  # as many images in each
    run = trial().on(tasks[0], quiet, features=found)
    assert run.ms_per_image["backbone"] == found.clock.mean_ms("backbone")
    for path in tasks[0].train[:3]:  # the first sets the backbone up and does not count
        found.get(path, Drift("noise", 25.0))
    assert found.clock.spent["backbone"][1] == 3 * 13 + 2


def test_only_the_first_pays(tasks: list[Task], images: dict[str, str], tmp_path: Path) -> None:
    told = []
    first = prepare(trial(), tasks[0], images["disc"], tmp_path, lambda *words: told.append(words))
    assert told == [("embed", n, 13) for n in range(1, 14)]
    assert (first.there, first.images) == (False, 13) and first.seconds > 0
    assert 13 * 176 * 8 * 8 * 4 < first.bytes < 13 * 176 * 8 * 8 * 4 + 20_000
    again = prepare(trial("fewshot", "coreset", FEWSHOT, memory=50), tasks[0], images["disc"], tmp_path, print)
    assert replace(again, seconds=first.seconds) == replace(first, there=True)


def test_the_same_image_twice_is_stored_once(tasks: list[Task], tmp_path: Path) -> None:
    twice = Task("twice", tasks[0].train + tasks[0].train[:2], tasks[0].test)
    assert prepare(trial(), twice, "f" * 64, tmp_path).images == 13


def test_a_file_that_is_no_image_is_told_and_nothing_is_stored(
    tasks: list[Task], images: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "torn.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"torn\.png"):
        prepare(trial(), replace(tasks[0], train=(tmp_path / "torn.png",)), images["disc"], tmp_path / "features")
    assert not [path for path in (tmp_path / "features").rglob("*") if path.is_file()]
    assert stored(trial(), tasks, images, tmp_path / "features") is None


def test_methods_that_learn_from_the_images_store_nothing(
    tasks: list[Task], images: dict[str, str], tmp_path: Path
) -> None:
    name = next(name for name, one in METHODS.items() if one.traits.end_to_end)
    one = Trial("offline", name, {"size": 64})
    assert prepare(one, tasks[0], images["disc"], tmp_path) == Prepared()
    assert stored(one, tasks, images, tmp_path) is None and not list(tmp_path.iterdir())


def test_names_stay_in_the_folder_and_other_images_are_not_mixed_in(tmp_path: Path) -> None:
    key, one, other = feature_key(trial()), "a" * 64, "b" * 64
    for name in ("../../up", "/etc/up", "..", "", "日本" * 200, "a\0b"):
        place = store_folder(tmp_path, key, name, one)
        assert place.resolve().parent == tmp_path.resolve() / key[:16] and len(place.name.encode()) < 150
        assert place != store_folder(tmp_path, key, name, other)


def test_a_store_of_others_under_the_same_name_is_refused(
    tasks: list[Task], images: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "features")
    forged = {**images, "disc": images["disc"][:16] + "0" * 48}
    with pytest.raises(Corrupt, match="something else"):
        stored(trial(), tasks, forged, tmp_path / "features")


def test_damage_ends_a_run(tasks: list[Task], images: dict[str, str], folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "features")
    (shard,) = store_folder(tmp_path / "features", feature_key(trial()), "disc", images["disc"]).glob("*.arrow")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(Corrupt, match="made anew"):
        figures(trial(), tasks, stored(trial(), tasks, images, tmp_path / "features"))


def test_the_key_is_of_what_features_depend_on_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    same = [
        trial(),
        trial(seed=3, device="cpu:0"),
        trial("fewshot", "coreset", FEWSHOT, memory=50, seeds=2),
        trial("continual"),
    ]
    others = [
        trial(size=96),
        trial(bits=12),
        trial(strides=[8]),
        trial(backbone="resnet18"),
        trial(weights="default"),
        trial(options={"crop": 96}),
    ]
    keys = {feature_key(one) for one in others}
    assert len({feature_key(one) for one in same}) == 1 and len(keys | {feature_key(trial())}) == 7
    before = feature_key(trial())
    monkeypatch.setattr(module, "__version__", "another")
    assert feature_key(trial()) != before


def test_the_key_is_of_what_is_in_a_file_of_weights(tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    keys = []
    for factor in (1.0, 2.0):
        net = Backbone("efficientnet_lite0", "none").state_dict()
        save_file({name: (factor * tensor).contiguous() for name, tensor in net.items()}, file)
        keys.append((feature_key(trial(weights=str(file))), digest(file)))
    assert keys[0][0] != keys[1][0] and keys[0][1] != keys[1][1]


def test_crops_have_stores_of_their_own(tasks: list[Task], images: dict[str, str], folder: Path) -> None:
    cropped = trial(options={"crop": 96})
    assert stored(cropped, tasks, images, folder) is None
    prepare(cropped, tasks[0], images["disc"], folder)
    whole, middle = stored(trial(), tasks, images, folder), stored(cropped, tasks, images, folder)
    assert whole is not None and middle is not None and len(middle.stores) == 1
    assert not torch.equal(whole.get(tasks[0].train[0]), middle.get(tasks[0].train[0]))


def test_the_times_of_two_trials_are_of_the_same_figures(tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = sharing.timed(trial(), tasks[:1], 1, lambda name: quiet(0))
    assert row.task == "disc" and row.images == 13 and row.first == row.embedding + row.shared
    assert min(row.alone, row.embedding, row.reading, row.shared) > 0 and row.ratio == row.alone / row.shared
    monkeypatch.setattr(sharing, "stored", lambda *given: Features(trial(strides=[4, 8]).make(0)))
    with pytest.raises(DataError, match="other figures"):
        sharing.timed(trial(), tasks[:1], 1, lambda name: quiet(0))
