"""What holds for every command: ``~`` in a path is the home folder, and an option that would do nothing is refused."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from typer.core import TyperCommand

Given = Mapping[str, Any]

#: Parameters of the measurement before and after.
MEASURING = ("evaluate", "text", "tokens", "stride")

#: Parameters that hold paths, or names that a path may stand in for.
PATHS = frozenset({"model", "output", "file", "against", "text", "calibration"})


class Need(NamedTuple):
    """When an option does something.

    ``holds``: told all of the command's parameters. ``otherwise``: why it does nothing where that is False; ends a sentence.
    """

    holds: Callable[[Given], bool]
    otherwise: str


def _calibrated(given: Given) -> bool:
    return given["method"] != "round_to_nearest" or given["activations"] == "static"


def _fits_already(given: Given) -> bool:
    """Whether the model is as small as ``--max-bytes`` asks for; then it asks for nothing."""
    from reference.evaluation import size_on_disk
    from reference.models import loading
    from reference.practice.targets import byte_count

    return size_on_disk(loading.resolve(given["model"]))["total"] <= byte_count(given["max_bytes"], "--max-bytes")


MEASURED = Need(lambda given: given["evaluate"], "with --no-evaluate")
GPTQ = Need(lambda given: given["method"].endswith("gptq"), "unless --method is gptq, awq+gptq or smoothquant+gptq")
WITH_BITS = Need(lambda given: given["bits"] is not None, "without --bits")
LOSSY = Need(lambda given: not given["lossless"], "with --lossless, which keeps every tensor exactly")
SOLVED = Need(
    lambda given: any(method != "round_to_nearest" for method in given["method"]), "where round_to_nearest is all that is tried"
)  # fmt: skip
TRAINED = Need(lambda given: given["steps"] > 0, "with --steps 0")
TRAINABLE = Need(
    lambda given: any(not method.startswith("awq") for method in given["method"]),
    "with AWQ alone, which training cannot start from",
)
READ = Need(
    lambda given: SOLVED.holds(given) or given["steps"] > 0, "with --steps 0 where round_to_nearest is all that is tried"
)  # fmt: skip

#: Options that some other choice makes idle, by command; of several needs all must hold. The others always do something.
NEEDS: dict[str, dict[str, tuple[Need, ...]]] = {
    "quantize": {
        "bits": (Need(lambda given: given["average_bits"] is None, "with --average-bits, which chooses them"),),
        "calibration": (
            Need(
                lambda given: _calibrated(given) or given["average_bits"] is not None,
                "with --method round_to_nearest, unless --activations is static or --average-bits is given",
            ),
        ),
        "sequences": (Need(_calibrated, "with --method round_to_nearest, unless --activations is static"),),
        "damping": (GPTQ,),
        "act_order": (GPTQ,),
        "static_groups": (
            Need(lambda given: given["act_order"], "without --act-order"),
            Need(lambda given: given["group_size"] != -1, "with --group-size -1: a row has one scale"),
        ),
        "alpha": (
            Need(
                lambda given: given["method"].startswith("smoothquant"),
                "unless --method is smoothquant or smoothquant+gptq",
            ),
        ),
        "text": (MEASURED,),
        "tokens": (MEASURED,),
        "stride": (MEASURED,),
        "window": (
            Need(
                lambda given: given["evaluate"] or _calibrated(given) or given["average_bits"] is not None,
                "with --no-evaluate and no calibration",
            ),
        ),
    },
    "prune": {
        "group_size": (WITH_BITS,),
        "symmetric": (WITH_BITS,),
        "format": (WITH_BITS,),
        "calibration": (Need(lambda given: given["method"] != "magnitude", "with --method magnitude"),),
        "sequences": (Need(lambda given: given["method"] != "magnitude", "with --method magnitude"),),
        "damping": (Need(lambda given: given["method"] == "sparsegpt", "unless --method is sparsegpt"),),
        "text": (MEASURED,),
        "tokens": (MEASURED,),
        "stride": (MEASURED,),
        "window": (
            Need(
                lambda given: given["evaluate"] or given["method"] != "magnitude",
                "with --no-evaluate and --method magnitude",
            ),
        ),
    },
    "compress": {"sparsity": (LOSSY,), "bits": (LOSSY,), "skip": (LOSSY,)},
    "workflow quantize": {
        "group_size": (Need(lambda given: any(bits != 8 for bits in given["bits"]), "where 8 bits are all that is tried"),),
        "calibration": (READ,),
        "seed": (READ,),
        "sequences": (SOLVED,),
        "steps": (TRAINABLE,),
        "batch": (TRAINED, TRAINABLE),
        "rate": (TRAINED, TRAINABLE),
    },
    "workflow prune": {
        "most": (
            Need(lambda given: given["sparsity"] is None, "with --sparsity"),
            Need(lambda given: given["min_ratio"] is None, "with --min-ratio"),
            Need(
                lambda given: given["max_bytes"] is None or _fits_already(given),
                "with a --max-bytes that asks for a smaller model",
            ),
        ),
    },
}  # fmt: skip


class Command(TyperCommand):
    """A command that looks at what it was given before it starts."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        for name in PATHS & ctx.params.keys():
            ctx.params[name] = expanded(ctx.params[name])
        for name, needs in NEEDS.get(called(ctx), {}).items():
            for need in needs:
                if is_given(ctx, name) and not need.holds(ctx.params):
                    refuse(ctx, name, need.otherwise)
        return super().invoke(ctx)


def called(ctx: Any) -> str:
    """The command's name, such as ``"workflow quantize"``."""
    return f"{called(ctx.parent)} {ctx.info_name}".strip() if ctx.parent else ""


def expanded(value: Any) -> Any:
    """``~`` and ``~user`` in a path or a list of them: shells leave those of ``--output=~/out`` and of quotes alone."""
    if isinstance(value, list | tuple):
        return [expanded(one) for one in value]
    return value if value is None else type(value)(os.path.expanduser(value))


def is_given(ctx: Any, name: str) -> bool:
    """Whether a parameter was named, rather than left to its default."""
    return ctx.get_parameter_source(name).name not in ("DEFAULT", "DEFAULT_MAP")


def refuse_given(ctx: Any, names: Iterable[str], otherwise: str) -> None:
    """Refuse those of some options that were named."""
    for name in names:
        if is_given(ctx, name):
            refuse(ctx, name, otherwise)


def refuse(ctx: Any, name: str, otherwise: str) -> None:
    """Say which option would do nothing, and why."""
    option = next(one for one in ctx.command.params if one.name == name)
    words = option.secondary_opts if option.secondary_opts and not ctx.params[name] else option.opts
    raise ValueError(f"{words[0]} has no effect {otherwise}; leave it out")
