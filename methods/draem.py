"""DRAEM: paint the anomaly over, then compare; trained on made-up anomalies.

Zavrtanik, Kristan, Skočaj: "DRAEM - A discriminatively trained reconstruction embedding for surface anomaly
detection" (arXiv 2108.07610). Letters: I image, A texture, M mask, I_a spoilt image, I_r reconstruction.
"""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .adam import Adam, fill
from .augment import augment
from .detector import ImageDetector, Learned, Scores, Traits
from .draem_nets import MULTIPLE, SMALLEST, Networks
from .errors import ConfigError
from .params import param
from .perlin import mask
from .textures import PROCEDURAL, Source, source

WINDOW, SIGMA = 11, 1.5  # of SSIM, as its authors give them
GAMMA = 2.0  # of the focal loss


@dataclass(kw_only=True, eq=False)
class Draem(ImageDetector):
    """Discriminatively trained reconstruction embedding: each call of `learn` is one step of Adam on its images.

    The paper's: both networks (69.0 and 28.4 million parameters at width 1), masks of Perlin noise above 0.5, half
    of the images spoilt, I_a = (1 - M) I + M ((1 - beta) I + beta A) with beta uniform in 0.1..1, three changes a
    texture, L2 + SSIM + focal loss with equal weights, Adam at 1e-4, and for an image's score the maximum after a
    21 x 21 mean filter. beta is read as the opacity of the texture, as the equation has it; the authors' published
    code draws the share of the image instead, uniform in 0..0.8.

    Ours: `width`; `procedural` textures, where the paper takes the Describable Textures Dataset (`everline pretrain
    textures` packs it, or any folder); noise that is turned about the middle on a lattice that goes on, so without
    empty corners; a mean filter that at the rim takes the pixels inside the image alone, since zeros around it would
    hide defects there; SSIM where its window fits. Not here: the authors' turning of training images by chance,
    and their lowering of the learning rate near the end, as a stream has none. A texture file is not part of
    the state: to go on bit for bit, the same file must be there. On a GPU, bits may differ from run to run.

    Cost, one thread: at 128 pixels and width 0.25 about 1.3 s for a step of four images and 80 ms to score one.
    At 256 pixels and width 1 it is 60 s, 4.4 s and 7 GB of memory: a task for a GPU.
    State: three times the weights, 1.17 GB at width 1 (73 MB at 0.25), whatever the stream's length.

    When not: on a line that must learn from its first images. It needs some 150 batches until it finds an obvious
    defect, more than the conformance suite gives it (a documented limit, with a test of its own); after forty single
    images it finds nothing. While the weights still move, batch norm's running statistics lag behind them, and the
    score swings from step to step: with small networks, 64 pixels and a rate of 2e-4, a clear defect went from
    always found to chance within five steps, and was found again once the weights were held for ten. It forgets
    a product when it learns the next (table 5.3 of the thesis: pixel f1 0.18 against 0.50).
    """

    name: ClassVar[str] = "draem"
    traits: ClassVar[Traits] = Traits(end_to_end=True, epochs=50, batch=4)

    width: float = param(1.0, "channels of both networks, times the paper's", low=0.01, high=4, log=True)
    lr: float = param(1e-4, "learning rate of Adam", low=0, high=1, log=True, search=(1e-5, 1e-3))
    textures: str = param(PROCEDURAL, "laid over normal images: procedural, or the path of a packed texture file")
    filter: int = param(
        21, "side of the mean filter before the image's maximum; odd",
        low=1, high=255, unit="pixels", search=(1, 5, 11, 21, 31),
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % MULTIPLE or self.size < SMALLEST:
            raise ConfigError(
                f"{self.name}: size must be a multiple of {MULTIPLE} from {SMALLEST} on, got {self.size}."
            )
        if self.filter % 2 == 0 or self.filter > self.size:
            raise ConfigError(
                f"{self.name}: filter must be odd and at most the size ({self.size}), got {self.filter}."
            )

    @property
    def network_bytes(self) -> int:
        """Of both networks, batch-norm statistics included; Adam's moments would come to twice that."""
        return _bytes(self.width)

    def _reset(self) -> None:
        self._networks: Networks | None = None  # made with the first image: their values come from the seed alone
        self._adam: Adam | None = None

    # -- scoring

    def _score(self, features: Tensor) -> Scores:
        assert self._networks is not None
        self._networks.eval()
        maps = torch.cat([self._map(image[None]) for image in features])  # one by one: memory, and equal bits
        return Scores(image=smoothed(maps, self.filter).amax((1, 2)), maps=maps)

    def _map(self, image: Tensor) -> Tensor:
        """uint8 (1, 3, S, S) -> probability of anomalous (1, S, S)."""
        assert self._networks is not None
        return self._networks(image.float() / 255)[1].softmax(1)[:, 1]

    # -- learning

    def _learn(self, features: Tensor) -> Learned:
        textures = source(self.textures)  # may be refused: before anything changes
        with torch.inference_mode(False), torch.enable_grad():  # whatever the caller has switched off
            if self._networks is None:
                networks = Networks.empty(self.width, self.device)
                self._begin(networks.draw(torch.Generator().manual_seed(self.seed)))
            images = features.float() / 255
            spoilt, masks = self._spoil(images, textures)
            detail = self._descend(images, spoilt, masks)
        loss = detail["l2"] + detail["ssim"] + detail["focal"]
        return Learned(images=len(features), loss=loss, detail={**detail, "spoilt": float(masks.float().mean())})

    def _begin(self, networks: Networks) -> None:
        self._networks = networks
        self._adam = Adam(dict(networks.named_parameters()), self.lr)

    def _spoil(self, images: Tensor, textures: Source) -> tuple[Tensor, Tensor]:
        """float32 (B, 3, S, S) -> I_a of the same shape, and M, bool (B, S, S)."""
        pairs = [spoil(image, textures, self._rng) for image in images]
        return torch.stack([one for one, _ in pairs]), torch.stack([one for _, one in pairs])

    def _descend(self, images: Tensor, spoilt: Tensor, masks: Tensor) -> dict[str, float]:
        """One step of Adam on the sum of the three losses; returns each."""
        assert self._networks is not None and self._adam is not None
        painted, logits = self._networks.train()(spoilt)
        losses = {
            "l2": F.mse_loss(painted, images),
            "ssim": 1 - ssim(painted, images),
            "focal": focal(logits, masks),
        }
        self._adam.step(
            torch.autograd.grad(torch.stack(list(losses.values())).sum(), list(self._adam.params.values()))
        )
        return {name: float(loss.detach()) for name, loss in losses.items()}

    # -- state

    def _pack(self) -> dict[str, Tensor]:
        if self._networks is None or self._adam is None:
            return {}
        networks = {f"networks.{name}": tensor for name, tensor in self._networks.state_dict().items()}
        return networks | {f"adam.{name}": tensor for name, tensor in self._adam.tensors().items()}

    def _unpack(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        networks = Networks.empty(self.width, self.device)
        fill({f"networks.{name}": own for name, own in networks.state_dict().items()}, tensors, "state")
        self._begin(networks)
        assert self._adam is not None
        self._adam.load({name.removeprefix("adam."): t for name, t in tensors.items() if name.startswith("adam.")})


def spoil(image: Tensor, textures: Source, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """An image (3, S, S) in 0..1 -> I_a and M, bool (S, S); one in two stays as it is, its mask empty.

    I_a = (1 - M) I + M ((1 - beta) I + beta A): beta, uniform in 0.1..1, is the opacity of the texture.
    """
    size = image.shape[-1]
    if float(torch.rand((), generator=rng)) < 0.5:
        return image, torch.zeros(size, size, dtype=torch.bool, device=image.device)
    where = mask(size, rng).to(image.device)
    texture = augment(textures(size, rng), rng).to(image.device)
    beta = 0.1 + 0.9 * float(torch.rand((), generator=rng))
    return torch.where(where, torch.lerp(image, texture, beta), image), where


def smoothed(maps: Tensor, side: int) -> Tensor:
    """Mean over side x side pixels, at the rim over those inside the image: (B, S, S) -> (B, S, S)."""
    return F.avg_pool2d(maps[:, None], side, 1, side // 2, count_include_pad=False)[:, 0]


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity (Wang et al. 2004) of images (B, C, S, S) in 0..1, wherever the window fits."""
    rows, cols = (_window(side).to(a.device) for side in a.shape[2:])
    ma, mb, aa, bb, ab = rows @ torch.stack([a, b, a * a, b * b, a * b]) @ cols.T  # (B, C, S - 10, S - 10) each
    va, vb, vab = aa - ma * ma, bb - mb * mb, ab - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * ma * mb + c1) * (2 * vab + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))).mean()


def focal(logits: Tensor, masks: Tensor) -> Tensor:
    """Focal loss (Lin et al. 2017, without class weights) of logits (B, 2, S, S) for M, bool (B, S, S); a scalar."""
    right = torch.where(masks[:, None], logits.flip(1), logits)  # the right class in front
    log = right.log_softmax(1)[:, 0]
    return -((1 - log.exp()) ** GAMMA * log).mean()


@cache
def _window(size: int) -> Tensor:
    """float32 (size - WINDOW + 1, size): a Gaussian that sums to one at each place; quicker than a convolution."""
    away = np.arange(WINDOW) - (WINDOW - 1) / 2
    window = torch.from_numpy(np.exp(-(away**2) / (2 * SIGMA**2))).float()
    rows = torch.zeros(size - WINDOW + 1, size)
    for row, own in enumerate(rows):
        own[row : row + WINDOW] = window / window.sum()
    return rows


@cache
def _bytes(width: float) -> int:
    with torch.device("meta"):
        return sum(t.numel() * t.element_size() for t in Networks(width).state_dict().values())
