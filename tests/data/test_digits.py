"""The stand-in digits: split by scan, repeatable, varied."""

import pytest
import torch
from sklearn.datasets import load_digits

from reference.data import digits


def test_shapes_types_and_range() -> None:
    images, labels = digits.load("test", variations=3)
    assert images.shape == (1500, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert images.min() >= 0
    assert images.max() <= 1


def test_every_scan_is_in_exactly_one_split() -> None:
    """The two splits together have the labels of all 1,797 scans, each as often."""
    counts = sum(torch.bincount(digits.load(split, variations=1)[1]) for split in ("train", "test"))
    assert counts.tolist() == torch.bincount(torch.from_numpy(load_digits().target)).tolist()


def test_the_same_seed_gives_the_same_images_and_another_gives_others() -> None:
    first, again, other = (digits.load("test", variations=1, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.01


def test_forms_of_one_scan_are_alike_but_not_equal() -> None:
    """Form k of scan i is row k · scans + i: nearer to its sibling than to another digit."""
    images, labels = digits.load("test", variations=2)
    first, second = images[:500].flatten(1), images[500:].flatten(1)
    own = (first - second).norm(dim=1)
    shuffled = (first - second.roll(1, 0)).norm(dim=1)
    assert (own > 0.1).all()
    assert own.mean() < 0.75 * shuffled.mean()
    assert torch.equal(labels[:500], labels[500:])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="split is 'validation'"):
        digits.load("validation")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="variations is 0"):
        digits.load(variations=0)
