"""The steps of the pruning workflow, each with its decision and the rows that it was made on."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference import checkpoint
from reference.evaluation import size_on_disk
from reference.models import loading
from reference.models.families import block_linears
from reference.practice import measurement
from reference.practice.bench import Bench
from reference.practice.cuts import block_weights, cuts, neuron_weights
from reference.practice.retraining import Recipe, retrain
from reference.practice.sparse_kernels import times_as_fast, zeros
from reference.practice.targets import best
from reference.practice.work import Row, Step
from reference.pruning.schedules import gradual

TITLES = ("Baseline measurement", "Gradual pruning", "Structured focus", "Fine-tuning", "Sparse library check")
#: Training after each round.
ROUND = Recipe(50)


@dataclass(frozen=True)
class Settings:
    """How a run prunes, and on which texts.

    Args:
        rounds: cuts with training between them. Towards a size the cubic schedule puts most of the removal into the first;
            where none is asked for they are of equal size, since the first that loses too much ends them.
        most: share of the blocks' weights that the last round has removed where no size is asked for.
        multiple: the number of neurons that stays is a multiple of this.
        texts, calibration, tokens, window, sequences, seed: as :class:`reference.practice.quantization_steps.Settings`.
        recipe: of the training after each round.
        final_steps: of the fine-tuning at the end; 0 for none.

    Example:
        >>> settings = Settings(rounds=3, most=0.3)
        >>> [round(settings.most * number / settings.rounds, 2) for number in (1, 2, 3)]  # where no size is asked for
        [0.1, 0.2, 0.3]

    Chapter: practice/pruning_pipeline
    """

    rounds: int = 4
    most: float = 0.5
    multiple: int = 16
    texts: tuple[str, ...] = ("code", "documentation")
    calibration: tuple[str, ...] = ("code", "documentation")
    tokens: int = 16384
    window: int = 256
    sequences: int = 16
    seed: int = 0
    recipe: Recipe = ROUND
    final_steps: int = 200


class Cutout(NamedTuple):
    """A pruned model that was trained, written, read back and measured.

    ``slug``: its folder. ``name``: what the report calls it. ``removed``: share of the blocks' weights. ``bytes``: of its files.
    ``rise``: of the perplexity on the text where it rises most; ``error``: its standard error.

    Example:
        >>> first = Cutout("round_1", "round 1", removed=0.1, bytes=900, rise=0.01, error=0.001)
        >>> second = first._replace(slug="round_2", name="round 2", removed=0.2, bytes=800, rise=0.05)
        >>> max((first, second), key=lambda one: one.removed).name
        'round 2'

    Chapter: practice/pruning_pipeline
    """

    slug: str
    name: str
    removed: float
    bytes: int
    rise: float
    error: float


class Steps(Bench):
    """The steps, with the original and, once something is trained, the teacher.

    Attributes:
        goal: share of the blocks' weights that must go for the size asked for; None where none is.

    Example:
        >>> from reference.practice.work import quiet
        >>> steps = Steps("tutorial", Settings(), quiet, max_loss=0.02, max_bytes=None, min_ratio=None)
        >>> first = Cutout("round_1", "round 1", removed=0.1, bytes=900, rise=0.01, error=0.001)
        >>> second = Cutout("round_2", "round 2", removed=0.2, bytes=800, rise=0.05, error=0.001)
        >>> steps.choose([first, second], tuned=None).name  # the last that keeps the limit
        'round 1'

    Chapter: none (the steps of :func:`reference.practice.pruning.run`)
    """

    goal: float | None = None
    teacher: Any = None

    def steps(self) -> tuple[Cutout, list[Step]]:
        self.original = loading.load_float(self.folder)
        self.dtype = self.original.dtype
        self.weights = block_weights(self.original)
        baseline = self.baseline()
        found, gradual_step, focus = self.rounds()
        tuned, tuning = self.fine_tuning(found)
        chosen = self.choose(found, tuned)
        chosen, library = self.sparse_library(chosen)
        return chosen, [baseline, gradual_step, focus, tuning, library]

    def baseline(self) -> Step:
        def measure() -> tuple[dict[str, Tensor], Row]:
            return self.losses(self.original, "baseline"), {}

        self.before, _ = self.work.once("baseline", measure)
        share = self.weights / sum(p.numel() for p in self.original.parameters())
        decision = (
            f"The model takes {self.dense:,} bytes; {share:.0%} of its parameters are weights of its blocks, which is what can be "
            "pruned."
        )
        return Step(TITLES[0], decision, self.perplexities())

    def rounds(self) -> tuple[list[Cutout], Step, Step]:
        """Steps 1 and 2, which alternate: each round cuts what costs least, and trains."""
        settings, goal = self.settings, self.goal
        final = settings.most if goal is None else goal
        found: list[Cutout] = []
        rows: list[Row] = []
        choices: list[Row] = []
        for number in range(1, settings.rounds + 1):
            share = final * number / settings.rounds
            if goal is not None:
                share = gradual(number, initial=0.0, final=final, begin_step=0, n_updates=settings.rounds)

            def take(number: int = number, share: float = share) -> tuple[dict[str, Tensor], Row]:
                return {}, self.one_round(number, share, final)

            _, notes = self.work.once(f"round_{number}", take)
            choices += notes["choices"]
            if not notes["choices"]:
                break
            found.append(
                Cutout(f"round_{number}", f"round {number}", *(notes[k] for k in ("removed", "bytes", "rise", "error")))
            )
            rows.append({"round": number, "removed": notes["removed"], "rise before": notes["cut"], "rise after": notes["rise"],
                         "error": notes["error"], "bytes": notes["bytes"]})  # fmt: skip
            if goal is None and found[-1].rise > self.target.max_loss:
                break
        if not found:
            raise ValueError(
                f"multiple is {settings.multiple}: no unit of the model can be cut; take a smaller one, or more"
            )
        return (
            found,
            Step(TITLES[1], self.about_rounds(rows), rows),
            Step(TITLES[2], self.about_choices(choices), choices),
        )

    def one_round(self, number: int, share: float, final: float) -> Row:
        settings = self.settings
        model = self.load(f"round_{number - 1}") if number > 1 else copy.deepcopy(self.original).float()
        batches = self.windows()
        choices: list[Row] = []
        folder = self.work.place(f"round_{number}")
        while (removed := 1 - block_weights(model) / self.weights) < share - 1e-9:
            wanted, left = (round((end - removed) * self.weights) for end in (share, final))
            # Neurons are rounded up to their multiple; where none are left, a head that removes more than is left to remove.
            room = left + settings.multiple * neuron_weights(model)
            tried = cuts(model, batches, wanted, room, multiple=settings.multiple)
            tried = tried or cuts(model, batches, wanted, self.weights, multiple=settings.multiple)
            if not tried:
                break
            model = tried[0].model
            for cut in tried:
                choices.append({"round": number, "units": cut.kind, "share": cut.weights / self.weights, "nats added": cut.loss,
                                "nats per million": cut.price, "taken": "yes" if cut is tried[0] else "no"})  # fmt: skip
        if not choices:
            return {"choices": []}
        cut_rise = self.quality(copy.deepcopy(model).to(self.dtype))["rise"]
        self.train(model, settings.recipe, number, f"round_{number}_state", f"round {number}")
        notes = self.write(model, folder)
        return notes | {"choices": choices, "cut": cut_rise, "removed": 1 - block_weights(model) / self.weights}

    def fine_tuning(self, found: list[Cutout]) -> tuple[Cutout | None, Step]:
        last, steps = found[-1], self.settings.final_steps
        if not steps:
            return None, Step(TITLES[3], "Not done: it was switched off.", [])

        def tune() -> tuple[dict[str, Tensor], Row]:
            model = self.load(last.slug)
            recipe = self.settings.recipe._replace(steps=steps)
            self.train(model, recipe, self.settings.rounds + 1, "tuned_state", "fine-tuning")
            return {}, self.write(model, self.work.place("tuned"))

        _, notes = self.work.once("tuned", tune)
        tuned = Cutout("tuned", f"{last.name}, fine-tuned", last.removed, notes["bytes"], notes["rise"], notes["error"])
        rows = [{"model": one.name, "rise": one.rise, "error": one.error} for one in (last, tuned)]
        within = "within" if tuned.rise <= self.target.max_loss else "still above"
        decision = (
            f"{steps} more steps take {last.name} from a rise of the perplexity of {last.rise:.2%} to {tuned.rise:.2%}, {within} the "
            f"limit of {self.target.max_loss:.2%}."
        )
        return tuned, Step(TITLES[3], decision, rows)

    def choose(self, found: list[Cutout], tuned: Cutout | None) -> Cutout:
        last = [one for one in (tuned, found[-1]) if one is not None]
        met = [one for one in last if self.target.met(one)]
        if met or self.goal is not None:
            return min(met or last, key=lambda one: one.rise)
        within = [one for one in found if self.target.met(one)]
        return max(within, key=lambda one: one.removed) if within else best([*found, *last], self.target)

    def sparse_library(self, chosen: Cutout) -> tuple[Cutout, Step]:
        def measure() -> tuple[dict[str, Tensor], Row]:
            model = loading.load_float(self.work.place(chosen.slug))
            weight = max((layer.get_parameter("weight") for _, layer in block_linears(model)), key=torch.numel)
            rows = [row for tokens in (1, 64) for row in times_as_fast(weight.detach(), tokens)]
            found: dict[tuple[str, float], float] = {}  # what zeros cost is the same for one token and for many
            for row in rows:
                key = row["format"], row["sparsity"]
                if row["times as fast"] > 1 and key not in found:
                    found[key] = self.quality(self.with_zeros(model, row))["rise"]
                row["rise"] = found[key] if row["times as fast"] > 1 else "no gain"
            speed = measurement.speeds({"before": self.original, "after": model}, self.settings.window)
            return {}, {"rows": rows, "speed": speed, "shape": list(weight.shape)}

        _, notes = self.work.once("sparse_library", measure)
        rows = [
            {**row, "format": f"{row['format']}, {row['tokens']} token{'s' * (row['tokens'] > 1)}"}
            for row in notes["rows"]
        ]
        useful = [
            row for row in notes["rows"] if not isinstance(row["rise"], str) and row["rise"] <= self.target.max_loss
        ]
        ratio = {
            work: notes["speed"]["after"][work] / notes["speed"]["before"][work] for work in ("prompt", "decoding")
        }
        paying = [row["sparsity"] for row in notes["rows"] if not isinstance(row["rise"], str)]
        if useful:
            row = max(useful, key=lambda row: row["times as fast"])
            verdict = (
                f"{row['format']} with {row['sparsity']:.0%} zeros is {row['times as fast']:.2f} times as fast as dense here and stays "
                f"within the limit ({row['rise']:.2%}): the zeros are written; serve them with that format."
            )
            chosen = self.write_zeros(chosen, row)
        elif paying:
            verdict = (
                f"Here a format beats the dense product from {min(paying):.0%} zeros on, and the model does not keep the limit there: "
                "no further weight is set to zero."
            )
        else:
            verdict = "No format is faster than the dense product here: no further weight is set to zero."
        decision = (
            f"{verdict} The smaller dense model needs no library: it reads prompts {ratio['prompt']:.2f} times and writes "
            f"{ratio['decoding']:.2f} times as fast as the original."
        )
        return chosen, Step(TITLES[4], decision, rows)

    # ---- what they are made of

    def with_zeros(self, model: Any, row: Row) -> Any:
        """A copy with zeros in the linear layers of the blocks, as a row of the table says."""
        model = copy.deepcopy(model)
        with torch.no_grad():
            for _, layer in block_linears(model):
                weight = layer.get_parameter("weight")
                weight.mul_(zeros(weight, row["format"], row["sparsity"]))
        return model

    def write_zeros(self, chosen: Cutout, row: Row) -> Cutout:
        def make() -> tuple[dict[str, Tensor], Row]:
            model = self.with_zeros(loading.load_float(self.work.place(chosen.slug)), row)
            return {}, self.write(model, self.work.place("zeros"))

        _, notes = self.work.once("zeros", make)
        name = f"{chosen.name}, {row['sparsity']:.0%} zeros for {row['format']}"
        return Cutout("zeros", name, chosen.removed, notes["bytes"], notes["rise"], notes["error"])

    def load(self, slug: str) -> Any:
        return loading.load_float(self.work.place(slug)).float()

    def train(self, model: Any, recipe: Recipe, turn: int, state: str, label: str) -> None:
        """Each turn draws other text: the same few windows again and again would be learned by heart."""
        if self.teacher is None:
            self.teacher = copy.deepcopy(self.original).float()
        retrain(model, self.teacher, self.calibration, recipe, seed=self.settings.seed + turn,
                checkpoint=self.work.place(state), progress=self.progress(label))  # fmt: skip

    def write(self, model: Any, folder: Path) -> Row:
        """Save in the type that the model came in, and measure what was saved."""
        if not folder.is_dir():
            checkpoint.save(model.to(self.dtype), folder, tokenizer=self.tokenizer)
        found = self.quality(loading.load_float(folder))
        return {"bytes": size_on_disk(folder)["total"], "rise": found["rise"], "error": found["error"]}

    def about_rounds(self, rows: list[Row]) -> str:
        if self.goal is not None:
            aim = f"The size asked for needs {self.goal:.1%} of the blocks' weights removed"
        else:
            aim = f"No size is asked for: rounds go on up to {self.settings.most:.0%}, or to the first that loses too much"
        last = rows[-1]
        return (
            f"{aim}. After {len(rows)} rounds {last['removed']:.1%} are gone, and the perplexity has risen by {last['rise after']:.2%}; "
            f"the last cut alone had taken it to {last['rise before']:.2%}."
        )

    def about_choices(self, choices: list[Row]) -> str:
        taken = [row["units"] for row in choices if row["taken"] == "yes"]
        counts = ", ".join(f"{kind} {taken.count(kind)} times" for kind in dict.fromkeys(taken))
        return f"What costs least loss for each weight removed was cut: {counts}. The result is a smaller dense model."
