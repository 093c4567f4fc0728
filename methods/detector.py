"""The contract: what every detector of everline is.

    features = detector.embed(images)     # one backbone pass serves both of the next
    scores   = detector.score(features)   # reads the state; higher is worse
    learned  = detector.learn(features)   # the only thing that changes the state

Where the product changes and someone knows it, `begin_task` says so; a method may keep its products apart.

A method subclasses `FeatureDetector`, in front of which stands a frozen backbone, or `ImageDetector`, which trains
networks of its own; it is a keyword-only dataclass whose fields are its parameters, and fills in `_score`, `_learn`,
`_pack` and `_unpack`. Letters in shapes: B images, C channels, h x w the feature grid, S the side of the input image.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import params
from .backbones import BACKBONES, Backbone
from .errors import ConfigError, NotLearned, StateError
from .maps import Upsampler
from .params import param
from .repeatable import repeatable

STATE_FORMAT = 1


@dataclass(frozen=True)
class Traits:
    """Abilities and needs of a method, as data that pipelines and lines read."""

    needs_normals_first: bool = False  # must see normals only before it may see an unlabelled stream
    learns_per_image: bool = True  # can take one image at a time
    gives_map: bool = True  # says where, not only whether
    bounded_memory: bool = True  # bytes of state stop growing
    end_to_end: bool = False  # trains its own network; `embed` is the identity
    epochs: int = 1  # how often its paper goes through a task's images, where time allows
    batch: int = 1  # how many of them it takes at a time
    memory: str = ""  # the parameter that says how much is kept: what a sweep over memory sizes sets


@dataclass(frozen=True)
class Scores:
    """`image`: float32 (B,), `maps`: float32 (B, S, S); higher is worse, any range.

    `tasks`: int64 (B,), the task that each image was taken for, as a place in `Detector.tasks`; None from a method
    that does not find that out, and where the caller has said it.
    """

    image: Tensor
    maps: Tensor
    tasks: Tensor | None = None


@dataclass(frozen=True)
class Learned:
    """What one call of `learn` did."""

    images: int  # images that the state has taken in
    loss: float = float("nan")  # NaN where the method has none
    kept: int = 0  # rows (vectors, nodes, ...) that the state holds now
    detail: dict[str, float] = field(default_factory=dict)
    admitted: Tensor | None = None  # bool (B, h, w): the patches believed to be normal; None: the method never asks


@dataclass(frozen=True)
class State:
    """A learned state: flat, contiguous CPU tensors and plain JSON-able metadata."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


@dataclass(kw_only=True, eq=False)
class Detector(ABC):
    """A visual anomaly detector that can learn from a stream. Raises ConfigError for a bad parameter."""

    name: ClassVar[str]
    traits: ClassVar[Traits] = Traits()

    size: int = param(224, "side of the square input image", low=32, high=1024, unit="pixels")
    bits: int = param(
        0,
        "bits in use in images of 16-bit files; 0: as the file says, else 16",
        choices=(0, 8, 10, 12, 14, 16),
        later=True,
    )
    seed: int = param(0, "seed of everything random", low=0, high=2**31 - 1)
    device: str = param("cpu", "where to compute: cpu, cuda, cuda:1, ...", recorded=False)

    def __post_init__(self) -> None:
        for name, kind, _, spec in params.table(type(self)):
            setattr(self, name, params.check(getattr(self, name), kind, spec, self.name, name))
        _check_device(self.name, self.device)
        self.images_learned = 0
        self.task = ""  # what is being learned, as far as anyone has said; "" for nothing said
        self.tasks: list[str] = []  # of which something has been learned, in the order of their first images
        self._rng = torch.Generator().manual_seed(self.seed)  # the only source of chance
        self._reset()

    @property
    def params(self) -> dict[str, Any]:
        """The configuration that makes this detector what it is (JSON-able, without `device`)."""
        rows = [(name, getattr(self, name), usual, spec) for name, _, usual, spec in params.table(type(self))]
        return {
            name: value for name, value, usual, spec in rows if spec.recorded and (not spec.later or value != usual)
        }

    @property
    def learns_per_image(self) -> bool:
        """Whether it can take one image at a time; a parameter may decide what the trait leaves open."""
        return self.traits.learns_per_image

    @property
    def embedding(self) -> tuple[Any, ...]:
        """What `embed` depends on: detectors for which it is equal share features."""
        return (self.name, *(repr(value) for value in self.params.values()), self.device)

    @property
    def together(self) -> int:
        """How many images `embed` may take at once, each with the bits that it has alone."""
        return 1

    @property
    def infers_tasks(self) -> bool:
        """Whether it says which of its tasks an image is of, where nobody tells it (`Scores.tasks`)."""
        return False

    @property
    def most_tasks(self) -> int | None:
        """How many tasks it can learn; None: any number."""
        return None

    @property
    def network_bytes(self) -> int:
        """Bytes of the weights of all networks that it needs, frozen or trained. Raises WeightsError."""
        return 0

    @property
    def ready(self) -> bool:
        """Whether `score` can answer. Most methods need one image first."""
        return self.images_learned > 0

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """The frozen part: uint8 RGB (B, 3, S, S) -> what `score` and `learn` take."""

    def begin_task(self, task: str) -> None:
        """What is learned from now on is of this product, be it new or back again. Most methods do not mind."""
        self.task = task

    def score(self, features: Tensor, task: str | None = None) -> Scores:
        """Anomaly of each image. Pure: the state stays as it is.

        features: what `embed` returned, B first. task: what the images are of, where that is known; a method that
        keeps its tasks apart finds it out for itself otherwise, and for one that it has not learned.
        Raises NotLearned while `ready` is false.
        """
        self._check(features)
        if not self.ready:
            raise NotLearned(f"{self.name}: nothing learned yet; learn from at least one image first.")
        with torch.inference_mode(), repeatable(self.device):
            if task in self.tasks:
                return self._score_as(features.to(self.device), self.tasks.index(task))
            return self._score(features.to(self.device))

    def learn(self, features: Tensor) -> Learned:
        """Takes B images into the state, in order, each once."""
        self._check(features)
        known = self.task in self.tasks
        if not known:
            self.tasks.append(self.task)
        try:
            with repeatable(self.device):
                learned = self._learn(features.to(self.device))
        except BaseException:
            if not known:
                self.tasks.pop()
            raise
        self.images_learned += len(features)
        return learned

    def state(self) -> State:
        """A copy of everything learned, random-generator and optimiser state included."""
        tensors = {"rng": self._rng.get_state(), **self._pack()}
        tensors = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
        meta = {
            "format": STATE_FORMAT,
            "method": self.name,
            "params": self.params,
            "images_learned": self.images_learned,
            "task": self.task,
            "tasks": list(self.tasks),
        }
        return State(tensors, meta)

    def load_state(self, state: State) -> None:
        """Takes over a state of the same method and parameters. Raises StateError for any other."""
        meta, tensors = state.meta, dict(state.tensors)
        if meta.get("format") != STATE_FORMAT:
            raise StateError(f"{self.name}: state format {meta.get('format')!r}, expected {STATE_FORMAT}.")
        if meta.get("method") != self.name:
            raise StateError(f"{self.name}: this is a state of {meta.get('method')!r}.")
        mine, theirs = _plain(self.params), self._named(meta.get("params"))
        if mine != theirs:
            differ = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
            raise StateError(f"{self.name}: the state was made with other parameters: {', '.join(differ)}.")
        try:
            rng = tensors.pop("rng")
            self._reset()
            self.task, self.tasks = _tasks(meta)
            with torch.inference_mode(False):  # or nothing could learn in place later
                self._unpack({k: t.clone().to(self.device) for k, t in tensors.items()})
            strange = self._pack().keys() ^ tensors.keys()
            if strange:
                raise KeyError(", ".join(sorted(strange)))
            self._rng.set_state(rng.clone())
            self.images_learned = int(meta["images_learned"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            self._reset()
            self.tasks, self.images_learned = [], 0
            raise StateError(f"{self.name}: the state is incomplete or misshapen: {error}.") from error

    def _named(self, theirs: Any) -> dict[str, Any]:
        """A state's parameters; one that it does not name came into the method later, and has its default."""
        rows = params.table(type(self))
        usual = {name: default for name, _, default, spec in rows if spec.recorded and not spec.later}
        return dict(_plain({**usual, **theirs} if isinstance(theirs, dict) and theirs else {}))

    def _check(self, features: Tensor) -> None:
        if features.ndim < 2 or not len(features):
            raise ConfigError(f"{self.name}: expected a batch of features, got shape {tuple(features.shape)}.")
        if features.is_floating_point() and not bool(torch.isfinite(features).all()):
            raise ConfigError(f"{self.name}: the features hold NaN or infinity.")

    @abstractmethod
    def _reset(self) -> None:
        """Sets up the empty state."""

    @abstractmethod
    def _score(self, features: Tensor) -> Scores: ...

    def _score_as(self, features: Tensor, task: int) -> Scores:
        """For methods that keep their tasks apart: the images are of this one, a place in `tasks`."""
        return self._score(features)

    @abstractmethod
    def _learn(self, features: Tensor) -> Learned: ...

    @abstractmethod
    def _pack(self) -> dict[str, Tensor]:
        """Everything learned as named tensors (base adds the generator)."""

    @abstractmethod
    def _unpack(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of `_pack`; raises KeyError or ValueError for missing or misshapen tensors."""


@dataclass(kw_only=True, eq=False)
class FeatureDetector(Detector):
    """A detector on patch features of a frozen backbone: `embed` gives float32 (B, C, h, w)."""

    backbone: str = param("efficientnet_lite0", "frozen feature extractor", choices=tuple(BACKBONES))
    weights: str = param("default", "default, none (random, to test with), or a weights file's path")
    strides: tuple[int, ...] = param(
        (4, 8, 16), "strides of the backbone maps that are concatenated", choices=(4, 8, 16, 32)
    )
    sigma: float = param(
        4.0, "Gaussian smoothing of the anomaly map", low=0, high=64, unit="pixels", search=(1.0, 8.0)
    )

    def embed(self, images: Tensor) -> Tensor:
        """uint8 RGB (B, 3, S, S) -> float32 (B, C, S/8, S/8). Raises WeightsError, ConfigError."""
        if images.dtype != torch.uint8 or images.shape[1:] != (3, self.size, self.size):
            want = f"uint8 (B, 3, {self.size}, {self.size})"
            raise ConfigError(f"{self.name}: expected images {want}, got {images.dtype} {tuple(images.shape)}.")
        return self.extractor(images)

    @property
    def embedding(self) -> tuple[Any, ...]:
        """The image's size and bits, and what names the backbone."""
        return (self.size, self.bits, self.backbone, self.weights, self.strides, self.device)

    @property
    def network_bytes(self) -> int:
        """Of the backbone, which all detectors of a process share."""
        return sum(t.numel() * t.element_size() for t in self.extractor.state_dict().values())

    @property
    def together(self) -> int:
        """What its backbone says."""
        return self.extractor.together

    @property
    def extractor(self) -> Backbone:
        """The backbone, shared by all detectors of this process that name the same one."""
        return Backbone.shared(self.backbone, self.weights, self.strides, self.device)

    def _check(self, features: Tensor) -> None:
        if features.ndim != 4:
            raise ConfigError(f"{self.name}: expected features (B, C, h, w), got {tuple(features.shape)}.")
        super()._check(features)

    def _finish(self, patches: Tensor) -> Scores:
        """Patch anomalies (B, h, w) -> smoothed full-size maps and their maxima."""
        maps = Upsampler.shared(tuple(patches.shape[1:]), self.size, self.sigma)(patches)
        return Scores(image=maps.amax(dim=(1, 2)), maps=maps)


@dataclass(kw_only=True, eq=False)
class ImageDetector(Detector):
    """A detector that trains networks of its own: `embed` gives the images as they are, uint8 (B, 3, S, S)."""

    def embed(self, images: Tensor) -> Tensor:
        """The images themselves, uint8 RGB (B, 3, S, S). Raises ConfigError for anything else."""
        self._check(images)
        return images

    @property
    def embedding(self) -> tuple[Any, ...]:
        """Images of a size and of bits, nothing else."""
        return ("images", self.size, self.bits, self.device)

    def _check(self, features: Tensor) -> None:
        if features.dtype != torch.uint8 or features.shape[1:] != (3, self.size, self.size):
            want = f"uint8 (B, 3, {self.size}, {self.size})"
            raise ConfigError(f"{self.name}: expected images {want}, got {features.dtype} {tuple(features.shape)}.")
        super()._check(features)


def _check_device(who: str, device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ConfigError(f"{who}: device must be cpu, cuda, cuda:1, ..., got {device!r}.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{who}: device {device!r}, but torch sees no GPU here; see everline doctor, or use cpu.")


def _tasks(meta: dict[str, Any]) -> tuple[str, list[str]]:
    """The task being learned and those learned from; states from before there were tasks have one without a name."""
    task, tasks = meta.get("task", ""), meta.get("tasks", [""] if meta["images_learned"] else [])
    if not isinstance(task, str) or not isinstance(tasks, list) or not all(isinstance(one, str) for one in tasks):
        raise ValueError(f"tasks must be names, got {task!r} and {tasks!r}")
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"a task is there twice: {tasks}")
    return task, list(tasks)


def _plain(value: Any) -> Any:
    """Tuples as lists, so that what came back from JSON compares equal."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
