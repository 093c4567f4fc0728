"""Defects made up on normal images, for lines that have too few real ones to judge by.

As DRAEM makes them (arXiv 2108.07610, section 3.2): a texture, changed three times, is laid over the image under a
mask of Perlin noise. Ours: textures are procedural, their opacity is 0.05 to 0.3 (DRAEM trains with 0.1 to 1), and
masks cover 0.1 to 5 % of the image. Strong ones are of no use to compare by: at 0.4 to 1 every method found all.

What a figure on them is worth: it ranks methods, roughly, and says nothing of how many real defects are found. The
opacity was chosen, out of five settings, on one data set (mtd), where the order of four methods became that of the
real defects. On two boards that had no part in the choice the best and the worst were the same as well, but an AUROC
of 0.96 stood beside 0.58 on real defects. A method that was trained on such anomalies (draem) is at home here.
"""

import io

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..methods.augment import augment
from ..methods.errors import DataError
from ..methods.perlin import mask
from ..methods.textures import procedural
from .images import decode

LEAST, MOST = 0.001, 0.05  # share of the image that a mask covers
VISIBLE = 0.008  # mean change of the pixels under the mask, of 0..1
FAINTEST, STRONGEST = 0.05, 0.3  # opacity of a texture
FINEST = 512  # pixels along the longer side at which masks and textures are made
TRIES = 200


def spoil(data: bytes, seed: int, bits: int = 0) -> tuple[bytes, bytes]:
    """An encoded image -> the spoilt one and its mask (0 and 255), as PNG of the same size; equal seeds, equal bits.

    bits: in use in a 16-bit file, as in `decode`.
    Raises ImageError for what is no image, DataError as `spoiled`.
    """
    spoilt, where = spoiled(torch.from_numpy(decode(data, bits=bits)).permute(2, 0, 1), seed)
    return _png(spoilt), _png(where)


def spoiled(pixels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """uint8 (3, H, W) -> the same with a defect, and its mask (1, H, W) of 0 and 255.

    Raises DataError where no visible defect could be made (never seen yet).
    """
    image = pixels.float() / 255
    rng = torch.Generator().manual_seed(seed)
    for _ in range(TRIES):
        where = _mask(image, rng)
        if LEAST <= float(where.float().mean()) <= MOST:
            spoilt = _covered(image, where, rng)
            if float((spoilt - image).abs().mean(0)[where].mean()) >= VISIBLE:
                return _bytes(spoilt), _bytes(where[None].float())
    raise DataError(f"no visible defect came of {TRIES} tries with the seed {seed}.")


def _mask(image: Tensor, rng: torch.Generator) -> Tensor:
    """bool (H, W)."""
    square = mask(min(FINEST, max(image.shape[1:])), rng).float()
    return F.interpolate(square[None, None], image.shape[1:], mode="nearest")[0, 0] > 0.5


def _covered(image: Tensor, where: Tensor, rng: torch.Generator) -> Tensor:
    texture = augment(procedural(min(FINEST, max(image.shape[1:])), rng), rng)
    fitted = F.interpolate(texture[None], image.shape[1:], mode="bilinear", align_corners=False)[0]
    opacity = FAINTEST + (STRONGEST - FAINTEST) * float(torch.rand((), generator=rng))
    return torch.where(where, torch.lerp(image, fitted, opacity), image)


def _bytes(picture: Tensor) -> Tensor:
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


def _png(pixels: Tensor) -> bytes:
    """uint8 (3 or 1, H, W) -> PNG."""
    out = io.BytesIO()
    Image.fromarray((pixels.permute(1, 2, 0) if len(pixels) == 3 else pixels[0]).numpy()).save(out, "png")
    return out.getvalue()
