"""The runs of ``quantization_aware.py``, most important first."""

from dataclasses import dataclass, replace

from reference.quantization.grid import QuantizationSpec
from reference.quantization.trained import DEPTH

METHODS = ("round_to_nearest", "gptq", "awq+gptq", "smoothquant+gptq")
#: Peak rates of AdamW that are tried at 2 bits; calibration text chooses.
SWEEP = (5e-4, 1e-3, 2e-3, 4e-3)


@dataclass(frozen=True)
class Run:
    """One training run. ``recipe``: ``lsq``, ``fixed`` (steps stay), ``scales``, ``low_rank``, ``low_rank_error``,
    ``nf4`` (a low-rank correction on NF4), ``float`` (no quantisation) or ``none`` (no training)."""

    name: str
    bits: int = 2
    group: int = 128
    symmetric: bool = True
    start: str = "gptq"
    recipe: str = "lsq"
    loss: str = "distillation"
    text: str = "real"
    activation_bits: int | None = None
    mask: str = "unrounded"
    scaled: bool = True
    rest: bool = True
    depth: float = DEPTH
    seed: int = 0
    rate: float | None = None
    step_rate: float | None = None

    @property
    def spec(self) -> QuantizationSpec:
        return QuantizationSpec(self.bits, symmetric=self.symmetric, group_size=self.group)


def sweep_name(rate: float) -> str:
    return f"2_bits_g128_rate_{rate:g}"


def runs() -> list[Run]:
    """Most important first."""
    main = Run("2_bits_g128")
    g64 = replace(main, name="2_bits_g64", group=64)
    affine = replace(g64, name="2_bits_g64_affine", symmetric=False)
    grids = {
        "4_bits_g128": (4, 128, True),
        "3_bits_g128": (3, 128, True),
        "2_bits_g128": (2, 128, True),
        "2_bits_g64": (2, 64, True),
        "2_bits_g128_affine": (2, 128, False),
        "2_bits_g64_affine": (2, 64, False),
    }
    solvers = [
        replace(
            main, name=f"none_{name}_{method}", bits=bits, group=group, symmetric=symmetric, recipe="none", start=method
        )
        for name, (bits, group, symmetric) in grids.items()
        for method in METHODS
    ]
    return [
        *(replace(main, name=sweep_name(rate), rate=rate) for rate in SWEEP),
        replace(main, name="2_bits_g128_scales_only", recipe="scales"),
        replace(main, name="2_bits_g128_low_rank", recipe="low_rank"),
        affine, g64, replace(main, name="3_bits_g128", bits=3), replace(main, name="4_bits_g128", bits=4),
        replace(main, name="2_bits_g128_cross_entropy", loss="cross_entropy"),
        replace(main, name="2_bits_g128_generated_text", text="generated"),
        replace(main, name="float_continued", recipe="float", loss="cross_entropy", bits=4),
        *solvers,
        replace(main, name="2_bits_g128_fixed_steps", recipe="fixed"),
        replace(main, name="2_bits_g128_start_round_to_nearest", start="round_to_nearest"),
        *(replace(run, name=f"{run.name}_seed_{seed}", seed=seed) for seed in (1, 2) for run in (affine, main)),
        replace(main, name="2_bits_g128_start_on_edges", depth=0.0),
        replace(main, name="2_bits_g128_rest_frozen", rest=False),
        replace(main, name="w4a4_g128", bits=4, activation_bits=4),
        replace(main, name="2_bits_g128_low_rank_from_error", recipe="low_rank_error"),
        replace(main, name="2_bits_g128_start_awq+gptq", start="awq+gptq"),
        replace(main, name="nf4_low_rank", bits=4, recipe="nf4"),
        *(replace(main, name=f"2_bits_g128_{what}_seed_{seed}", seed=seed, **{key: value})
          for seed in (1, 2)
          for what, key, value in (("cross_entropy", "loss", "cross_entropy"), ("generated_text", "text", "generated"))),
        *(replace(g64, name=f"{g64.name}_seed_{seed}", seed=seed) for seed in (1, 2)),
        replace(main, name="2_bits_g128_start_centre", depth=0.5),
        replace(main, name="2_bits_g128_start_lsq", start="lsq"),
        replace(main, name="w4a8_g128", bits=4, activation_bits=8),
        replace(main, name="2_bits_g128_affine", symmetric=False),
        replace(main, name="2_bits_g128_rounded_mask", mask="rounded"),
        replace(main, name="2_bits_g128_unscaled", scaled=False),
        replace(main, name="3_bits_g128_cross_entropy", bits=3, loss="cross_entropy"),
        replace(main, name="4_bits_g128_cross_entropy", bits=4, loss="cross_entropy"),
    ]  # fmt: skip
