"""The four kernels on the way to w4a16."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from variant import Variant

from reference.kernels.w4a16_steps import STEPS

GROUP = 128
TYPES = {"x": "*bf16", "packed": "*i32", "scale": "*bf16", "zero_point": "*u8", "y": "*bf16"}
TYPES |= dict.fromkeys(("K", "WORDS", "GROUPS"), "i32")


def variants() -> Iterator[Variant]:
    for number, step in STEPS.items():
        weights = step.outputs * step.columns
        yield Variant(
            f"w4a16_steps {number}", step.kernel, TYPES, {"G": GROUP, **step.constants}, frozenset(TYPES), step.warps, 3,
            weights=weights, stream=weights // 2 if number > 1 else 0, matrix={80: "", 90: ""},
        )  # fmt: skip


def faults() -> Iterator[Variant]:
    """Step 4 as one gets it by mistake: compiled to be looked at, not to be run."""
    *_, last = variants()
    yield dataclasses.replace(
        last, name="step 4, words a row not known to be a multiple of 16", aligned=last.aligned - {"WORDS"}
    )
    yield dataclasses.replace(last, name="step 4, one warp a program", warps=1)
