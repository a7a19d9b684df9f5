"""One row of activations times packed 4-bit codes, without tensor cores: each warp has rows of the weight to itself."""

# mypy: allow-untyped-defs
from __future__ import annotations

from ._triton import INTERPRETED, constexpr, jit, round_to, tl

AT_16 = constexpr("lop3.b32 $0, $1, 0x000f0000, 0x43000000, 0xEA;")
AT_12 = constexpr("lop3.b32 $0, $1, 0x0000f000, 0x45000000, 0xEA;")


@jit
def _code(words, SHIFT: tl.constexpr, PLACE: tl.constexpr, EXACT: tl.constexpr):
    """The code at bit ``PLACE`` after a shift (to the left where positive), in fp32; plus ``2^(23 - PLACE)`` if not exact.

    OR-ed into the mantissa of that power of two, the code's lowest bit is worth one: no conversion from integers.
    ``lop3 … 0xEA`` is ``(a & b) | c``.
    """
    moved = words << SHIFT if SHIFT > 0 else words >> -SHIFT
    if INTERPRETED:
        raised = (moved & (15 << PLACE)) | ((150 - PLACE) << 23)
    elif PLACE == 16:
        raised = tl.inline_asm_elementwise(AT_16, "=r,r", [moved], tl.uint32, is_pure=True, pack=1)
    else:
        raised = tl.inline_asm_elementwise(AT_12, "=r,r", [moved], tl.uint32, is_pure=True, pack=1)
    raised = raised.to(tl.float32, bitcast=True)
    return raised - (1 << (23 - PLACE)) if EXACT else raised


@jit
def one_row(
    x, packed, scale, zero_point, y, N, K, WORDS, GROUPS,
    G: tl.constexpr, OUTPUTS: tl.constexpr, RUNS: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    EXACT: tl.constexpr = x.dtype.element_ty == tl.float32
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    run = tl.arange(0, RUNS)
    word = tl.arange(0, 128)
    column = tl.arange(0, 1024)
    quad = tl.arange(0, 32)
    total = tl.zeros((RUNS, OUTPUTS, 32), tl.float32)
    for first in tl.range(0, tl.cdiv(WORDS, 128), RUNS, num_stages=STAGES):
        now = first + run
        w = (now[:, None] * 128 + word[None, :])[:, None, :]
        pointers = packed + n[None, :, None] * WORDS + w
        k = now[:, None] * 1024 + column[None, :]
        q = now[:, None] * 32 + quad[None, :]
        group = n[None, :, None] * GROUPS + (q * 32 // G)[:, None, :]
        if EVEN:
            words = tl.load(pointers)
            s = tl.load(scale + group).to(tl.float32)
            z = 8.0 if zero_point is None else tl.load(zero_point + group).to(tl.float32)
            xs = tl.load(x + k)
        else:
            inside = (n < N)[None, :, None]
            words = tl.load(pointers, mask=inside & (w < WORDS), other=0)
            inside = inside & (q * 32 < K)[:, None, :]
            s = tl.load(scale + group, mask=inside, other=0.0).to(tl.float32)
            z = 8.0 if zero_point is None else tl.load(zero_point + group, mask=inside, other=0).to(tl.float32)
            xs = tl.load(x + k, mask=k < K, other=0.0)
        even, odd = tl.split(tl.reshape(xs.to(tl.float32), (RUNS, 128, 2, 2, 2)))
        x04, x26 = tl.split(even)
        x15, x37 = tl.split(odd)
        x0, x4 = tl.split(x04)
        x2, x6 = tl.split(x26)
        x1, x5 = tl.split(x15)
        x3, x7 = tl.split(x37)
        words = words.to(tl.uint32, bitcast=True)
        part = _code(words, 16, 16, EXACT) * x0[:, None, :]
        part += _code(words, 8, 12, EXACT) * x1[:, None, :]
        part += _code(words, 8, 16, EXACT) * x2[:, None, :]
        part += _code(words, 0, 12, EXACT) * x3[:, None, :]
        part += _code(words, 0, 16, EXACT) * x4[:, None, :]
        part += _code(words, -8, 12, EXACT) * x5[:, None, :]
        part += _code(words, -8, 16, EXACT) * x6[:, None, :]
        part += _code(words, -16, 12, EXACT) * x7[:, None, :]
        evens = x0 + x2 + x4 + x6
        odds = x1 + x3 + x5 + x7
        products = tl.sum(tl.reshape(part, (RUNS, OUTPUTS, 32, 4)), axis=3)
        if not EXACT:
            raised = tl.sum(tl.reshape(128.0 * evens + 2048.0 * odds, (RUNS, 32, 4)), axis=2)
            products -= raised[:, None, :]
        sums = tl.sum(tl.reshape(evens + odds, (RUNS, 32, 4)), axis=2)
        total += s * (products - z * sums[:, None, :])
    out = tl.sum(tl.sum(total, axis=2), axis=0)
    tl.store(y + n, round_to(out, y.dtype.element_ty), mask=n < N)
