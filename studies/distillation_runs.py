"""The runs of ``distillation.py``, most important first."""

from dataclasses import dataclass, field

from reference.distillation.train import Recipe

TEACHERS = ("none", "float", "4 bits", "3 bits", "2 bits", "half zero")
SEEDS = (0, 1, 2)
HALF = (0, 2, 4)  # the blocks of a student, as in DistilBERT
PAIRS = ((1, 2), (2, 4), (3, 6))
STEPS, LONG = 80, 160
RATE = 1e-3


@dataclass(frozen=True)
class Run:
    """One student. ``start``: whose layers it is cut from, ``"float"`` or ``"teacher"``; ``text``: ``"real"`` or
    ``"generated"`` by its teacher; ``seed`` draws the windows, the same ones for every run."""

    name: str
    teacher: str = "float"
    layers: tuple[int, ...] = HALF
    seed: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    start: str = "float"
    text: str = "real"
    steps: int = STEPS
    rate: float = RATE


def taught_by(teacher: str, seed: int = 0, rate: float = RATE) -> Run:
    """A student of the main table; without a teacher it learns the text."""
    recipe = Recipe(share=0.0) if teacher == "none" else Recipe()
    end = "" if rate == RATE else f", rate {rate:g}"
    return Run(f"{teacher}, seed {seed}{end}", teacher, seed=seed, recipe=recipe, rate=rate)


SWEEP = [taught_by(teacher, rate=rate) for rate in (RATE, 2e-3) for teacher in ("none", "float")]
JUDGED = [run.name for run in SWEEP]


def runs() -> list[Run]:
    """Most important first."""
    main = [taught_by(teacher, seed) for seed in SEEDS for teacher in TEACHERS]
    two = Run("blocks 0 5", layers=(0, 5), steps=LONG)  # of all pairs with block 0 the one that starts best
    ablations = [
        Run("temperature 2", recipe=Recipe(temperature=2.0)),
        Run("hidden states", recipe=Recipe(hidden=1.0, layers=PAIRS)),
        Run("temperature 4", recipe=Recipe(temperature=4.0)),
        Run("generated text", text="generated"),
        Run("half text", recipe=Recipe(share=0.5)),
        *SWEEP[2:],
        Run("from 2 bits", "2 bits", start="teacher"),
        Run("hidden states, cosine", recipe=Recipe(hidden=1.0, hidden_kind="cosine", layers=PAIRS)),
        Run("attention", recipe=Recipe(attention=1.0, layers=PAIRS)),
    ]
    return [*main, two, *ablations]
