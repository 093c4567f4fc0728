"""Shares of patches admitted, counted against masks that the learner never sees."""

import math

import numpy as np
import torch
from everline.pipelines.protocols.admission import Admission


def test_one_mask_pixel_makes_its_patch_defective() -> None:
    admission = Admission()
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 3, 5] = True  # in the patch (0, 1) of a grid of 2 x 2
    admitted = torch.tensor([[[True, True], [False, True]], [[True, False], [False, False]]])
    admission.add(admitted, masks)
    assert admission.shares == {"normal": 3 / 7, "defective": 1.0}


def test_batches_add_up_patch_by_patch() -> None:
    admission = Admission()
    rng = np.random.default_rng(0)
    masks, admitted = rng.random((5, 6, 6)) < 0.2, rng.random((5, 3, 3)) < 0.5
    for cut in (slice(0, 1), slice(1, 5)):
        admission.add(torch.from_numpy(admitted[cut]), masks[cut])
    truth = masks.reshape(5, 3, 2, 3, 2).any(axis=(2, 4))
    assert admission.shares == {"normal": admitted[~truth].mean(), "defective": admitted[truth].mean()}


def test_without_masks_or_a_report_there_are_no_shares() -> None:
    admission = Admission()
    admission.add(None, np.zeros((1, 4, 4), bool))
    admission.add(torch.ones(1, 2, 2, dtype=torch.bool), None)
    assert admission.shares is None


def test_a_share_of_no_patches_is_nan() -> None:
    admission = Admission()
    admission.add(torch.ones(1, 2, 2, dtype=torch.bool), np.zeros((1, 4, 4), bool))
    assert admission.shares is not None and admission.shares["normal"] == 1
    assert math.isnan(admission.shares["defective"])
