"""What a learner believes to be normal, against the truth that it never sees: shares of patches admitted."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d


class Admission:
    """Counts patches offered to a learner and admitted by it, the normal and the defective ones apart.

    A patch is defective if its cell of the image holds a pixel of the mask.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((2, 2), np.int64)  # normal and defective x admitted and offered

    def add(self, admitted: Tensor | None, masks: NDArray[np.bool_] | None) -> None:
        """admitted: bool (B, h, w), as a detector reports. masks: (B, S, S). Nothing counts where either is None."""
        if admitted is None or masks is None:
            return
        defective = adaptive_max_pool2d(torch.from_numpy(masks).float(), admitted.shape[1:]).bool()
        for row, mine in enumerate((~defective, defective)):
            self._counts[row] += int((mine & admitted.cpu()).sum()), int(mine.sum())

    @property
    def shares(self) -> dict[str, float] | None:
        """`normal`, `defective`: in [0, 1], NaN where there were none; None where nothing was counted."""
        if not self._counts.any():
            return None
        with np.errstate(invalid="ignore"):
            normal, defective = (self._counts[:, 0] / self._counts[:, 1]).tolist()
        return {"normal": normal, "defective": defective}
