"""A few rows of activations times packed codes, on tensor cores, each code unpacked in registers where it is used."""

# mypy: allow-untyped-defs
from __future__ import annotations

from ._triton import INTERPRETED, constexpr, jit, prefetch_to_cache, round_to, tl, wait_for_previous

BF16, FP16 = "0x43004300", "0x64006400"  # 2^7 and 2^10, twice: their last mantissa bit is worth one


def _assembly(bits: int, raise_: str) -> str:
    """PTX from two units of eight codes to eight registers; register t holds code t of both, OR-ed into mantissas.

    A unit of 4-bit codes is a word, so the two words' halves are paired first; two units of 2-bit codes are one word.
    ``lop3 … 0xEA`` is ``(a & b) | c``: one instruction masks and raises two codes.
    """
    mask = "0x000f000f" if bits == 4 else "0x00030003"
    lines = [".reg .b32 a, b;"]
    if bits == 4:
        lines += ["prmt.b32 a, $8, $9, 0x5410;", "prmt.b32 b, $8, $9, 0x7632;"]
        steps, registers = 4, [("a", 0), ("b", 4)]
    else:
        lines += ["mov.b32 a, $8;"]
        steps, registers = 8, [("a", 0)]
    for step in range(steps):
        for register, first in registers:
            if step:
                lines.append(f"shr.u32 {register}, {register}, {bits};")
            lines.append(f"lop3.b32 ${first + step}, {register}, {mask}, {raise_}, 0xEA;")
    if raise_ == FP16:  # 2^10 is too much to carry through the sums
        lines += [f"mov.b32 a, {raise_};", *(f"sub.rn.f16x2 ${t}, ${t}, a;" for t in range(8))]
    return "{" + " ".join(lines) + "}"


BF16_4, BF16_2 = constexpr(_assembly(4, BF16)), constexpr(_assembly(2, BF16))
FP16_4, FP16_2 = constexpr(_assembly(4, FP16)), constexpr(_assembly(2, FP16))
REGISTERS_4, REGISTERS_2 = constexpr("=r," * 8 + "r,r"), constexpr("=r," * 8 + "r")


@jit
def _eight(units, BITS: tl.constexpr, dtype: tl.constexpr):
    """Codes 0…7 of each unit as ``dtype``; in bf16 plus 128, which costs nothing to add and is taken off the sums."""
    if INTERPRETED:  # it has no inline assembly; fp32 holds the same values
        base = 128.0 if dtype == tl.bfloat16 else 0.0
        last = (1 << BITS) - 1
        u = units.to(tl.int32)
        return (
            (u & last).to(tl.float32) + base,
            ((u >> BITS) & last).to(tl.float32) + base,
            ((u >> 2 * BITS) & last).to(tl.float32) + base,
            ((u >> 3 * BITS) & last).to(tl.float32) + base,
            ((u >> 4 * BITS) & last).to(tl.float32) + base,
            ((u >> 5 * BITS) & last).to(tl.float32) + base,
            ((u >> 6 * BITS) & last).to(tl.float32) + base,
            ((u >> 7 * BITS) & last).to(tl.float32) + base,
        )
    if BITS == 4 and dtype == tl.bfloat16:
        codes = tl.inline_asm_elementwise(BF16_4, REGISTERS_4, [units], (tl.bfloat16,) * 8, is_pure=True, pack=2)
    elif BITS == 4:
        codes = tl.inline_asm_elementwise(FP16_4, REGISTERS_4, [units], (tl.float16,) * 8, is_pure=True, pack=2)
    elif dtype == tl.bfloat16:
        codes = tl.inline_asm_elementwise(BF16_2, REGISTERS_2, [units], (tl.bfloat16,) * 8, is_pure=True, pack=2)
    else:
        codes = tl.inline_asm_elementwise(FP16_2, REGISTERS_2, [units], (tl.float16,) * 8, is_pure=True, pack=2)
    return codes


@jit
def _operand(x, ROWS: tl.constexpr):
    """``[groups, rows, k]`` to the right operand ``[groups, k, ROWS]``; a single row is repeated, not padded."""
    x = tl.permute(x, (0, 2, 1))
    x = tl.broadcast_to(x, (x.shape[0], x.shape[1], ROWS))
    return x.to(tl.float32) if INTERPRETED else x


@jit
def few_rows(
    x, units, scale, zero_point, y, M, N, K, UNITS, GROUPS, STRIDE,
    BITS: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr, STAGES: tl.constexpr, ONE: tl.constexpr, EVEN: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """``OUTPUTS`` outputs of all rows a program; in each turn ``BLOCKS`` blocks of ``COLUMNS`` columns side by side.

    Code t of every unit meets column t of every eight: eight products with a K of ``COLUMNS / 8`` instead of one, so
    that no code has to change its thread. The blocks of a turn are a batch that the warps share; their sums, one a
    block, are scaled (a block lies in one group) and added up only at the end. Σ (u - z) x = Σ u x - z Σ x, and Σ x
    comes from products with ones: a sixteenth of a weight's share of instructions instead of half of one for each
    subtraction. EVEN: no size leaves a rest.
    """
    X_ROWS: tl.constexpr = 1 if ONE else ROWS
    m = tl.minimum(tl.program_id(1) * ROWS + tl.arange(0, X_ROWS), M - 1)  # the last row again, rather than a mask
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    unit = tl.arange(0, COLUMNS // 8)
    column = tl.arange(0, COLUMNS)
    # The loop fetches weights and activations turns ahead, but not scales and zero points, which are too small for it:
    # a program asks for all of its own at once. This reads nothing, so it may come before the previous kernel's end.
    first_group = tl.where(n < N, n, 0) * GROUPS
    prefetch_to_cache(scale + first_group)
    if zero_point is not None:
        prefetch_to_cache(zero_point + first_group)
    if EARLY:
        # Weights are no result of the previous kernel's, as a rule; and where they are, the L2 cache is where it wrote.
        start = tl.arange(0, 16) * (128 // BITS)
        start = tl.where((n < N)[:, None] & (start < UNITS)[None, :], n[:, None] * UNITS + start[None, :], 0)
        prefetch_to_cache(units + start)
        wait_for_previous()
    dtype: tl.constexpr = x.dtype.element_ty
    base: tl.constexpr = 128 if dtype == tl.bfloat16 else 0
    ones = tl.full((BLOCKS, OUTPUTS, COLUMNS // 8), 1.0, tl.float32 if INTERPRETED else dtype)
    total = tl.zeros((BLOCKS, OUTPUTS, ROWS), tl.float32)
    for first in tl.range(0, tl.cdiv(K, COLUMNS), BLOCKS, num_stages=STAGES):
        block = first + tl.arange(0, BLOCKS)
        u = block[:, None, None] * (COLUMNS // 8) + unit[None, None, :]
        k = block[:, None, None] * COLUMNS + column[None, None, :]
        unit_pointers = units + n[None, :, None] * UNITS + u
        x_pointers = x + m[None, :, None] * STRIDE + k
        if EVEN:
            packed = tl.load(unit_pointers)
        else:
            packed = tl.load(unit_pointers, mask=(n < N)[None, :, None] & (u < UNITS), other=0)
        xs = tl.load(x_pointers) if EVEN else tl.load(x_pointers, mask=k < K, other=0.0)
        group = n[None, :] * GROUPS + (block * COLUMNS // G)[:, None]
        inside = (n < N)[None, :] & (block * COLUMNS < K)[:, None]
        s = tl.load(scale + group) if EVEN else tl.load(scale + group, mask=inside, other=0.0)
        if zero_point is None:
            zero = tl.full((1, 1, 1), base + (1 << (BITS - 1)), tl.float32)
        elif EVEN:
            zero = tl.load(zero_point + group).to(tl.float32)[:, :, None] + base
        else:
            zero = tl.load(zero_point + group, mask=inside, other=0).to(tl.float32)[:, :, None] + base
        # The last axes of two are the bits of k in an eight, from high to low: split takes the lowest first.
        even, odd = tl.split(tl.reshape(xs, (BLOCKS, X_ROWS, COLUMNS // 8, 2, 2, 2)))
        x04, x26 = tl.split(even)
        x15, x37 = tl.split(odd)
        x0, x4 = tl.split(x04)
        x2, x6 = tl.split(x26)
        x1, x5 = tl.split(x15)
        x3, x7 = tl.split(x37)
        w0, w1, w2, w3, w4, w5, w6, w7 = _eight(packed, BITS, dtype)
        part = tl.zeros((BLOCKS, OUTPUTS, ROWS), tl.float32)
        sums = tl.zeros((BLOCKS, OUTPUTS, ROWS), tl.float32)
        x0 = _operand(x0, ROWS)
        part = tl.dot(w0, x0, part)
        sums = tl.dot(ones, x0, sums)
        x1 = _operand(x1, ROWS)
        part = tl.dot(w1, x1, part)
        sums = tl.dot(ones, x1, sums)
        x2 = _operand(x2, ROWS)
        part = tl.dot(w2, x2, part)
        sums = tl.dot(ones, x2, sums)
        x3 = _operand(x3, ROWS)
        part = tl.dot(w3, x3, part)
        sums = tl.dot(ones, x3, sums)
        x4 = _operand(x4, ROWS)
        part = tl.dot(w4, x4, part)
        sums = tl.dot(ones, x4, sums)
        x5 = _operand(x5, ROWS)
        part = tl.dot(w5, x5, part)
        sums = tl.dot(ones, x5, sums)
        x6 = _operand(x6, ROWS)
        part = tl.dot(w6, x6, part)
        sums = tl.dot(ones, x6, sums)
        x7 = _operand(x7, ROWS)
        part = tl.dot(w7, x7, part)
        sums = tl.dot(ones, x7, sums)
        total += s.to(tl.float32)[:, :, None] * (part - zero * sums)
    out = round_to(tl.sum(total, axis=0), y.dtype.element_ty)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    tl.store(y + rows[None, :] * N + n[:, None], out, mask=(rows < M)[None, :] & (n < N)[:, None])
