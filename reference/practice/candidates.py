"""The ladder of a quantisation workflow: which grids and solvers are tried, in which order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from reference import workflow
from reference.evaluation import tensor_bytes
from reference.models.families import block_linears, family_of
from reference.models.streaming import StreamedModel
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec

#: Solvers from cheap to dear; the first looks at no text, the last searches and solves.
METHODS = ("round_to_nearest", "gptq", "awq", "awq+gptq")
BITS = (3, 4, 8)


@dataclass(frozen=True)
class Candidate:
    """One way to quantise a model.

    Args:
        bits: of the weights.
        method: one of :data:`METHODS`.
        integers: whether inputs are rounded to 8 bits too, so that integers are multiplied (8 bits, round to nearest).
        group_size: weights that share a scale, None for one scale an output channel; of 8 bits always None.

    Example:
        >>> Candidate(4, "gptq").name, Candidate(8, "round_to_nearest", integers=True).name
        ('W4A16 gptq', 'W8A8 round_to_nearest')
        >>> Candidate(8, "gptq").spec.group_size is None, Candidate(4, "awq").trainable
        (True, False)

    Chapter: practice/quantization_workflow
    """

    bits: int
    method: str
    integers: bool = False
    group_size: int | None = 128

    @property
    def spec(self) -> QuantizationSpec:
        """Grid of the weights."""
        return QuantizationSpec(self.bits, symmetric=True, group_size=None if self.bits == 8 else self.group_size)

    @property
    def activations(self) -> ActivationSpec | None:
        """Grid of the inputs."""
        return ActivationSpec() if self.integers else None

    @property
    def calibrated(self) -> bool:
        """Whether the solver looks at text."""
        return self.method != "round_to_nearest"

    @property
    def trainable(self) -> bool:
        """Whether training can start from it: float inputs, and channels as they were."""
        return not self.integers and not self.method.startswith("awq")

    @property
    def name(self) -> str:
        """What the report calls it, such as ``"W4A16 gptq"``."""
        return f"W{self.bits}A{8 if self.integers else 16} {self.method}"

    @property
    def slug(self) -> str:
        """The name as that of a file."""
        return self.name.lower().replace(" ", "_").replace("+", "_")


def ladder(
    model: nn.Module, bits: Sequence[int] = BITS, methods: Sequence[str] = METHODS, group_size: int | None = 128
) -> list[Candidate]:
    """All candidates, the smallest first; of one size the one whose solver is cheapest first.

    At 8 bits integers come first: they are as small, and their products are faster where the processor has them.

    Args:
        model: weights may be on the meta device.
        bits: 2 to 8, each once.
        methods: of :data:`METHODS`; AWQ is left out where the family has no norm to fold its scales into.
        group_size: weights that share a scale, below 8 bits.

    Raises:
        ValueError: an unknown method, or a layer that a grid does not fit, named.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
        ...                      num_hidden_layers=1, num_attention_heads=2)
        >>> rungs = ladder(LlamaForCausalLM(config), bits=(8, 4), methods=("gptq", "round_to_nearest"), group_size=8)
        >>> [rung.name for rung in rungs]
        ['W4A16 round_to_nearest', 'W4A16 gptq', 'W8A8 round_to_nearest', 'W8A16 round_to_nearest', 'W8A16 gptq']

    Chapter: practice/quantization_workflow
    """
    if not bits or len(set(bits)) < len(bits) or not all(2 <= b <= 8 for b in bits):
        raise ValueError(f"bits are {list(bits)}; they may be 2 to 8, each once")
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ValueError(f"methods are {list(methods)}; they may be {', '.join(METHODS)}")
    usable = [m for m in METHODS if m in methods and (family_of(model).scalings or not m.startswith("awq"))]
    if not usable:
        raise ValueError(f"methods are {list(methods)}; {type(model).__name__} has no norm that AWQ could use")
    found = []
    for width in sorted(bits):
        if width == 8 and "round_to_nearest" in usable:
            found.append(Candidate(8, "round_to_nearest", True, group_size))
        found += [Candidate(width, method, False, group_size) for method in usable]
    for candidate in found:
        workflow.check(model, candidate.spec)
    return found


def planned_bytes(folder: Path, candidate: Candidate) -> int:
    """Bytes of the tensors of a checkpoint before it is made, from shapes alone.

    Args:
        folder: of the float model.
        candidate: what would be made of it.

    Returns:
        Bytes of codes, scales and what stays in float; headers of files are not counted.

    Example:
        >>> from reference.models.tutorial import PATH  # 16-bit weights, and embeddings that stay so
        >>> dense = sum(tensor_bytes(PATH).values())
        >>> [round(dense / planned_bytes(PATH, Candidate(bits, "gptq")), 1) for bits in (8, 4)]
        [1.7, 2.5]

    Chapter: practice/quantization_workflow
    """
    sizes, spec = tensor_bytes(folder), candidate.spec
    total = sum(sizes.values())
    for name, layer in block_linears(StreamedModel(folder).model):
        rows, columns = layer.get_parameter("weight").shape
        codes = rows * columns if candidate.integers else rows * 4 * -(-columns * spec.bits // 32) + 16
        total += codes + 2 * rows * (columns // (spec.group_size or columns)) - sizes[f"{name}.weight"]
    return total
