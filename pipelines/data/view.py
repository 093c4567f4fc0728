"""How a picture becomes the square that a backbone sees, and its mask with it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...methods.errors import ConfigError, DataError, ImageError
from ...platform.depth import Unused
from ...platform.images import views
from .datasets import HALF
from .masks import read_mask


@dataclass(frozen=True)
class View:
    """The whole picture, resized to `size`; or resized to `crop`, of which the middle `size` is kept.

    LeMO and K-NG crop (256 to 224). It cuts off what is at the rim, defects too, so the whole picture is the default.
    Raises ConfigError for a crop smaller than the size.
    """

    size: int
    crop: int | None = None
    bits: int = 0  # in use in 16-bit files, as in `decode`
    unused: Unused | None = field(default=None, compare=False)  # hears of 16-bit files that do not say their bits

    def __post_init__(self) -> None:
        if self.crop is not None and not self.size <= self.crop <= 4096:
            raise ConfigError(f"--crop must be in [{self.size} (the size), 4096] pixels, got {self.crop}.")

    def picture(self, path: Path) -> Tensor:
        """uint8 (3, size, size). Raises DataError for a file that is no image."""
        try:
            return self.decoded(path.read_bytes())
        except (OSError, ImageError) as error:
            raise DataError(f"{path}: {error}") from error

    def decoded(self, data: bytes) -> Tensor:
        """uint8 (3, size, size) of an encoded image. Raises ImageError."""
        whole = self.crop or self.size
        found = views(data, (whole,), bits=self.bits, strict=True)
        if self.unused is not None:
            self.unused.see(found.unsure)
        picture: Tensor = self._middle(found.squares[whole])
        return picture

    def mask(self, path: Path, above: int = HALF, image: Path | None = None) -> NDArray[np.bool_]:
        """bool (size, size); see `read_mask`, also for the errors."""
        return self._middle(read_mask(path, self.crop or self.size, above, image))

    def _middle(self, array: Any) -> Any:
        """The middle of the last two axes of a tensor or an array."""
        start = ((self.crop or self.size) - self.size) // 2
        return array[..., start : start + self.size, start : start + self.size]
