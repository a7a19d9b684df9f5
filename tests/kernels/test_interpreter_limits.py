"""What the interpreter does differently, held fast: a release that changes it should change the chapter."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels run with Triton, which is not installed")

from reference.kernels import _triton
from reference.kernels.interpreter_limits import count_programs, sum_without_mask, to_bfloat16

pytestmark = pytest.mark.skipif(
    not _triton.INTERPRETED.value, reason="TRITON_INTERPRET=1 was not set when the kernels were imported"
)


def test_conversion_cuts_the_lower_bits() -> None:
    x = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    cut = (x.view(torch.int32) & ~0xFFFF).view(torch.float32).bfloat16()
    found = to_bfloat16(x)
    assert torch.equal(found, cut)
    assert 0.4 < (found != x.bfloat16()).float().mean() < 0.6


def test_a_race_is_not_seen() -> None:
    assert count_programs(100) == 100


def test_a_read_past_the_end_takes_the_neighbour() -> None:
    buffer = torch.ones(8)
    buffer[5:] = torch.nan
    assert sum_without_mask(buffer[:4], 4) == 4
    assert torch.isnan(torch.tensor(sum_without_mask(buffer[:5], 8)))
