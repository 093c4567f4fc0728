"""A teacher for EfficientAD: a distilled network, how its outputs are normalised, and some pictures it was made from.

A teacher file is safetensors: `pdn.*` (weights of the network), `mean` and `std` (float32 (C,), of its outputs over
its pretraining images), `pictures` (uint8 (N, 3, s, s), a sample of these; may be missing). Its metadata are strings:
format, model, width, backbone, steps, images. `everline pretrain teacher` makes one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .adam import fill
from .errors import WeightsError
from .pdn import CHANNELS, MODELS, PDN, drawn, narrowed, scaled, unfilled

FORMAT = "everline-teacher-1"
MAX_BYTES = 2**30
MAX_PICTURES = 2000
MAX_SIDE = 1024
MADE = ("backbone", "steps", "images")  # metadata that says where it comes from
_OCTAVES = (2, 5, 13, 34)  # cells along a side of the made-up pictures
_LEAST = 1e-6  # a channel that never changes is divided by this


@dataclass(frozen=True)
class Teacher:
    """`net`: frozen. `mean`, `std`: float32 (C,) of its outputs. `pictures`: uint8 (N, 3, s, s), N may be 0."""

    model: str
    width: float
    net: PDN
    mean: Tensor
    std: Tensor
    pictures: Tensor
    made: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: str, width: float, tensors: Mapping[str, Tensor], device: str = "cpu") -> Self:
        """From the tensors of a file or a state. Raises KeyError or ValueError for those that are not a teacher's."""
        mean, std = tensors["mean"].to(device), tensors["std"].to(device)
        pictures = tensors.get("pictures", torch.empty(0, 3, 1, 1, dtype=torch.uint8)).to(device)
        _check(mean, std, pictures)
        net = unfilled(lambda: PDN(model, width, len(mean))).to(device).requires_grad_(False)
        weights = net.state_dict()
        fill(weights, {name: tensors[f"pdn.{name}"].to(device) for name in weights}, "teacher")
        if not all(bool(torch.isfinite(t).all()) for t in (mean, std, *weights.values())):
            raise ValueError("it holds NaN or infinity")
        strange = set(tensors) - {"mean", "std", "pictures", *(f"pdn.{name}" for name in weights)}
        if strange:
            raise ValueError(f"{min(strange)} is no part of a {model} teacher")
        return cls(model, width, net, mean, std, pictures)

    @classmethod
    def random(cls, model: str, width: float, rng: torch.Generator, device: str = "cpu") -> Self:
        """Weights drawn by chance, to test with; normalised on made-up pictures, of which it keeps none."""
        net = drawn(unfilled(lambda: PDN(model, width, narrowed(CHANNELS, width))), rng)
        seen = net(scaled(textures(8, 64, rng))).detach().double()
        mean, std = seen.mean((0, 2, 3)), seen.std((0, 2, 3)).clamp_min(_LEAST)
        nothing = torch.empty(0, 3, 1, 1, dtype=torch.uint8, device=device)
        return cls(
            model,
            width,
            net.to(device).requires_grad_(False),
            mean.float().to(device),
            std.float().to(device),
            nothing,
        )

    @classmethod
    def read(cls, path: str, model: str, width: float, device: str = "cpu") -> Self:
        """The teacher in a file. Raises WeightsError for one that cannot be read, or is of another model or width."""
        if not Path(path).is_file():
            raise WeightsError(f"teacher file {path!r} is not there; {HOW}")
        if Path(path).stat().st_size > MAX_BYTES:
            raise WeightsError(f"teacher file {path!r} is larger than {MAX_BYTES:,} bytes; {HOW}")
        try:
            with safe_open(path, "pt") as file:
                meta = dict(file.metadata() or {})
                _agree(path, meta, model, width)
                found = cls.of(model, width, {name: file.get_tensor(name) for name in file.keys()}, device)  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"teacher file {path!r} cannot be read as safetensors: {error}; {HOW}") from error
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise WeightsError(f"teacher file {path!r} does not fit: {error}; {HOW}") from error
        found.made.update({key: meta.get(key, "") for key in MADE})
        return found

    @property
    def channels(self) -> int:
        """C."""
        return len(self.mean)

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Images as `scaled` gives them (B, 3, S, S) -> normalised float32 (B, C, g, g)."""
        return (self.net(inputs) - self.mean[:, None, None]) / self.std[:, None, None]

    def tensors(self) -> dict[str, Tensor]:
        """For a file or a state; `of` is the reverse."""
        found = {f"pdn.{name}": t for name, t in self.net.state_dict().items()}
        found |= {"mean": self.mean, "std": self.std}
        return found | ({"pictures": self.pictures} if len(self.pictures) else {})

    def metadata(self) -> dict[str, str]:
        """For a file."""
        return {"format": FORMAT, "model": self.model, "width": repr(self.width), **self.made}

    def picture(self, size: int, rng: torch.Generator) -> Tensor:
        """One of its pictures, or a made-up one where it has none: uint8 (1, 3, size, size)."""
        if not len(self.pictures):
            return textures(1, size, rng).to(self.mean.device)
        one = self.pictures[int(torch.randint(len(self.pictures), (1,), generator=rng))][None]
        if one.shape[2:] == (size, size):
            return one
        return F.interpolate(one.float(), (size, size), mode="bilinear", antialias=True).round().clamp(0, 255).byte()


HOW = "make one with: everline pretrain teacher --images DIR --out FILE (see everline pretrain teacher --help)."


def textures(count: int, size: int, rng: torch.Generator) -> Tensor:
    """Made-up pictures, uint8 (count, 3, size, size): coloured noise on several scales, stretched to 0..255.

    They stand in for pretraining images where there are none; they are no match for real ones.
    """
    total = torch.zeros(count, 3, size, size)
    for cells in _OCTAVES:
        noise = torch.rand(count, 3, cells, cells, generator=rng)
        colour = torch.rand(count, 3, 1, 1, generator=rng)
        total += colour * F.interpolate(noise, (size, size), mode="bilinear")
    low, high = total.amin((1, 2, 3), True), total.amax((1, 2, 3), True)
    return ((total - low) / (high - low) * 255).byte()


def _check(mean: Tensor, std: Tensor, pictures: Tensor) -> None:
    if mean.dtype != torch.float32 or mean.ndim != 1 or not 1 <= len(mean) <= CHANNELS:
        raise ValueError(f"mean must be float32 (C,) with C in [1, {CHANNELS}], got {mean.dtype} {tuple(mean.shape)}")
    if std.dtype != torch.float32 or std.shape != mean.shape or not bool((std > 0).all()):
        raise ValueError(f"std must be float32 {tuple(mean.shape)} and above 0, got {std.dtype} {tuple(std.shape)}")
    fits = pictures.dtype == torch.uint8 and pictures.ndim == 4 and pictures.shape[1] == 3
    if not fits or len(pictures) > MAX_PICTURES or max(pictures.shape[2:]) > MAX_SIDE or not min(pictures.shape[2:]):
        want = f"uint8 (N, 3, s, s) with N <= {MAX_PICTURES} and s in [1, {MAX_SIDE}]"
        raise ValueError(f"pictures must be {want}, got {pictures.dtype} {tuple(pictures.shape)}")


def _agree(path: str, meta: Mapping[str, str], model: str, width: float) -> None:
    """Raises WeightsError for a file that is no teacher's, or another one's."""
    if meta.get("format") != FORMAT:
        raise WeightsError(f"file {path!r} is no teacher of this version ({FORMAT}); {HOW}")
    theirs = meta.get("model", "")
    try:
        wide = float(meta.get("width", ""))
    except ValueError:
        raise WeightsError(f"teacher file {path!r}: its width is {meta.get('width')!r}, no number; {HOW}") from None
    if theirs not in MODELS:
        raise WeightsError(f"teacher file {path!r}: its model is {theirs!r}, expected {' or '.join(MODELS)}; {HOW}")
    if theirs != model or wide != width:
        raise WeightsError(
            f"teacher file {path!r} holds a {theirs} network of width {wide:g}, asked for was {model} of width "
            f"{width:g}: set model={theirs} width={wide:g}, or make another one."
        )
