"""Handwritten digits without a download: scikit-learn's 8 × 8 scans, enlarged and varied to 28 × 28.

A stand-in for MNIST where no data hub can be reached. The 1,797 scans are split once, by scan, so that
no variation of a test scan is ever trained on.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

TEST_SCANS = 500


def load(
    split: Literal["train", "test"] = "train", *, variations: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Images and labels of one split; each scan comes in ``variations`` random forms.

    A scan is enlarged to 20 × 20 pixels in the middle of 28 × 28 (MNIST's layout), then moved by a
    random affine map (rotation up to 10°, scale 0.9 to 1.1, shear up to 0.1, shift up to 1 pixel)
    and by a smooth random field of displacements (elastic variation, about half a pixel).

    Args:
        split: 1,297 scans for training or 500 for testing; the split does not depend on ``seed``.
        variations: forms of each scan.
        seed: of the variations.

    Returns:
        float32 ``[scans · variations, 1, 28, 28]`` from 0 to 1 and int64 ``[scans · variations]``;
        form ``k`` of scan ``i`` is row ``k · scans + i``.

    Raises:
        ValueError: ``split`` is another word, or ``variations`` is below 1.

    Source: the scans are Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits" (UCI),
    shipped by scikit-learn; the variations follow Simard et al. 2003, "Best practices for
    convolutional neural networks", section 2.

    Example:
        >>> images, labels = load("test", variations=1)
        >>> images.shape, labels.bincount().tolist()  # of each digit a like share
        (torch.Size([500, 1, 28, 28]), [50, 51, 49, 51, 50, 51, 50, 50, 48, 50])

    Chapter: pruning/magnitude
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; it may be 'train' or 'test'")
    if variations < 1:
        raise ValueError(f"variations is {variations}; it may be 1 or more")
    scans = load_digits()
    rows = train_test_split(
        np.arange(len(scans.target)), test_size=TEST_SCANS, stratify=scans.target, random_state=0
    )[split == "test"]  # fmt: skip
    small = torch.from_numpy(scans.images[rows]).float().unsqueeze(1) / 16
    labels = torch.from_numpy(scans.target[rows]).long().repeat(variations)
    large = functional.interpolate(small, size=(20, 20), mode="bicubic", align_corners=False)
    large = functional.pad(large, (4, 4, 4, 4)).clamp(0, 1).repeat(variations, 1, 1, 1)
    generator = torch.Generator().manual_seed(2 * seed + (split == "test"))
    return _vary(large, generator), labels


def _vary(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random affine map and a smooth random displacement of each image ``[n, 1, h, w]``."""
    n, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, scale, shear = uniform(-10, 10).deg2rad(), uniform(0.9, 1.1), uniform(-0.1, 0.1)
    shift = 2 / width
    rotation = torch.stack(
        [angle.cos(), -angle.sin() + shear, uniform(-shift, shift), angle.sin(), angle.cos(), uniform(-shift, shift)], 1
    ).view(n, 2, 3)
    rotation[:, :, :2] /= scale.view(n, 1, 1)
    grid = functional.affine_grid(rotation, [n, 1, height, width], align_corners=False)
    # Noise on a coarse lattice, enlarged smoothly: the field is random but neighbours move together.
    coarse = torch.randn(n, 2, 6, 6, generator=generator) * 2 * 0.5 / width
    field = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    varied = functional.grid_sample(images, grid + field.permute(0, 2, 3, 1), align_corners=False)
    return varied.clamp(0, 1)
