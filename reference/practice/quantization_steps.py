"""The steps of the quantisation workflow, each with its decision and the rows that it was made on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from reference import checkpoint, workflow
from reference.evaluation import size_on_disk
from reference.models import loading
from reference.pipeline import quantize_folder
from reference.practice import measurement
from reference.practice.bench import Bench
from reference.practice.candidates import BITS, METHODS, Candidate, planned_bytes
from reference.practice.retraining import Recipe, retrain
from reference.practice.targets import best
from reference.practice.work import Row, Step
from reference.quantization.preparation import convert, prepare, solved
from reference.quantization.trained import round_together

TITLES = (
    "Baseline measurement", "Post-training sweep", "Calibration check", "Quantization-aware training",
    "Hardware validation",
)  # fmt: skip
TRAINING = Recipe(200, rate=1e-3)
#: Tokens that are computed one by one to compare decoding with prompts.
DECODED = 48


@dataclass(frozen=True)
class Settings:
    """What a run may try, and on which texts.

    Args:
        bits, methods, group_size: of :func:`reference.practice.candidates.ladder`.
        texts: to measure on.
        calibration: texts that solvers and training see.
        tokens: of each text to measure on, from its start; 0 for all.
        window: tokens that the model sees at once.
        sequences: windows of calibration text in all.
        recipe: of the training; 0 steps for none.
        seed: of the draws.

    Example:
        >>> quick = Settings(bits=(4,), methods=("round_to_nearest",), recipe=TRAINING._replace(steps=0))
        >>> quick.bits, Settings().bits, quick.texts == Settings().texts
        ((4,), (3, 4, 8), True)

    Chapter: practice/quantization_workflow
    """

    bits: tuple[int, ...] = BITS
    methods: tuple[str, ...] = METHODS
    group_size: int | None = 128
    texts: tuple[str, ...] = ("code", "documentation")
    calibration: tuple[str, ...] = ("code", "documentation")
    tokens: int = 16384
    window: int = 256
    sequences: int = 32
    recipe: Recipe = TRAINING
    seed: int = 0


class Tried(NamedTuple):
    """A candidate that was made, written, read back and measured.

    ``candidate``: how it was made. ``bytes``: of its files. ``rise``: of the perplexity on the text where it rises most;
    ``error``: its standard error. ``seconds`` the solver took. ``trained``: whether it was trained too.

    Example:
        >>> tried = Tried(Candidate(4, "gptq"), bytes=480, rise=0.015, error=0.001, seconds=2.0)
        >>> tried.name, tried._replace(trained=True).name
        ('W4A16 gptq', 'W4A16 gptq + training')

    Chapter: practice/quantization_workflow
    """

    candidate: Candidate
    bytes: int
    rise: float
    error: float
    seconds: float
    trained: bool = False

    @property
    def name(self) -> str:
        """What the report calls it."""
        return self.candidate.name + (" + training" if self.trained else "")


class Steps(Bench):
    """The steps, with the candidates that they have tried.

    Example:
        >>> from reference.practice.work import quiet
        >>> steps = Steps("tutorial", Settings(), quiet, max_loss=0.02, max_bytes=5e6, min_ratio=None)
        >>> tried = Tried(Candidate(4, "gptq"), bytes=4_000_000, rise=0.0195, error=0.001, seconds=2.0)
        >>> steps.verdict(tried), steps.verdict(tried._replace(bytes=6_000_000))
        ('meets the target, narrowly', 'too large')

    Chapter: none (the steps of :func:`reference.practice.quantization.run`)
    """

    def steps(self, rungs: list[Candidate]) -> tuple[Tried, list[Step]]:
        self.tried: list[Tried] = []
        baseline = self.baseline()
        winner, sweep, check = self.sweep(rungs)
        training = self.training(winner, rungs)
        chosen = winner or best(self.tried, self.target)
        again, validation = self.validation(chosen)
        return chosen._replace(rise=max(again, chosen.rise)), [baseline, sweep, check, training, validation]

    # ---- the steps

    def baseline(self) -> Step:
        def measure() -> tuple[dict[str, Tensor], Row]:
            model = loading.load_float(self.folder)
            return self.losses(model, "baseline"), measurement.speeds({"float": model}, self.settings.window)["float"]

        self.before, speed = self.work.once("baseline", measure)
        decision = (
            f"The float model takes {self.dense:,} bytes, reads prompts at {speed['prompt']:,.0f} tokens a second and writes "
            f"{speed['decoding']:,.0f}. Everything below is compared with these numbers."
        )
        return Step(TITLES[0], decision, self.perplexities())

    def sweep(self, rungs: list[Candidate]) -> tuple[Tried | None, Step, Step]:
        """Steps 2 and 3: a candidate that meets the target is the answer if it does so on another draw too."""
        rows: list[Row] = []
        checks: list[Row] = []
        winner = None
        small = [candidate for candidate in rungs if self.target.fits(planned_bytes(self.folder, candidate))]
        for candidate in small or rungs[:1]:  # where nothing is small enough the smallest shows how far it is
            tried = self.attempt(candidate)
            verdict = self.verdict(tried)
            if self.target.met(tried):
                found = self.check(tried)
                checks += found
                lasting = tried._replace(rise=max([tried.rise, *(row["rise"] for row in found[1:2])]))
                winner = tried if self.target.met(lasting) else None
                verdict = "the answer" if winner else "not on another draw"
                self.tried.append(lasting)
            else:
                self.tried.append(tried)
            rows.append(self.row(tried) | {"verdict": verdict})
            if winner:
                break
            self.tidy()
        left = len(rungs) - len(small)
        rest = f" {left} of {len(rungs)} candidates were too large to be tried." if left else ""
        decision = (
            f"{winner.name} is the first that meets the target: perplexity rises by {winner.rise:.2%}, "
            f"{self.dense / winner.bytes:.2f} times smaller.{rest}"
            if winner
            else f"None of {len(rows)} candidates meets the target.{rest}"
        )
        return winner, Step(TITLES[1], decision, rows), Step(TITLES[2], _about_checks(checks, winner), checks)

    def check(self, tried: Tried) -> list[Row]:
        """Whether the answer holds on another draw; and what one text alone would have given."""
        if not tried.candidate.calibrated:
            return []
        settings = self.settings
        draws = {"another draw": (self.calibration, settings.seed + 1)}
        if len(self.calibration) > 1:
            draws |= {f"{name} alone": ({name: ids}, settings.seed) for name, ids in self.calibration.items()}
        rows = [{"candidate": tried.name, "calibration": "as in the sweep", "rise": tried.rise, "error": tried.error}]
        for label, (texts, seed) in draws.items():

            def measure(
                texts: dict[str, Tensor] = texts, seed: int = seed, label: str = label
            ) -> tuple[dict[str, Tensor], Row]:
                model = loading.load_float(self.folder)
                drawn = measurement.draw(texts, settings.sequences, settings.window, seed)
                workflow.quantize(
                    model, tried.candidate.spec, method=tried.candidate.method, calibration=drawn,
                    progress=self.progress(f"{tried.name}, {label}"),
                )  # fmt: skip
                return {}, self.quality(model)

            _, found = self.work.once(
                f"check_{tried.candidate.slug}_{label.replace(' ', '_').replace('/', '_')}", measure
            )
            rows.append({"candidate": tried.name, "calibration": label, "rise": found["rise"], "error": found["error"]})
        return rows

    def training(self, winner: Tried | None, rungs: list[Candidate]) -> Step:
        recipe = self.settings.recipe
        if winner:
            return Step(TITLES[3], "Not needed: the sweep met the target.", [])
        starts = [tried for tried in self.tried if tried.candidate.trainable and self.target.fits(tried.bytes)]
        if not starts or not recipe.steps:
            why = (
                "it was switched off"
                if not recipe.steps
                else "no candidate that training could start from is small enough"
            )
            return Step(TITLES[3], f"Not done: {why}.", [])
        start = best(starts, self.target)
        slug = f"{start.candidate.slug}_trained"

        def train() -> tuple[dict[str, Tensor], Row]:
            self.train(start.candidate, slug)
            return {}, self.quality(checkpoint.load(self.work.place(slug))) | {"seconds": 0.0}

        _, notes = self.work.once(slug, train)
        tried = Tried(
            start.candidate, size_on_disk(self.work.place(slug))["total"], notes["rise"], notes["error"], 0.0, True
        )
        self.tried.append(tried)
        rows = [self.row(one) | {"verdict": self.verdict(one)} for one in (start, tried)]
        outcome = "which meets the target" if self.target.met(tried) else "which still misses the target"
        decision = (
            f"Training starts from {start.name}, the best of the sweep that can be trained. {recipe.steps} steps take the rise "
            f"of the perplexity from {start.rise:.2%} to {tried.rise:.2%}, {outcome}."
        )
        return Step(TITLES[3], decision, [{k: v for k, v in row.items() if k != "seconds"} for row in rows])

    def validation(self, chosen: Tried) -> tuple[float, Step]:
        def measure() -> tuple[dict[str, Tensor], Row]:
            model, dense = checkpoint.load(self.made(chosen)), loading.load_float(self.folder)
            again = self.quality(model)
            ids = next(iter(self.texts.values()))[:DECODED]
            gaps = {"gap": measurement.decoding_gap(model, ids), "gap before": measurement.decoding_gap(dense, ids)}
            return {}, {"again": again} | gaps | measurement.speeds(
                {"before": dense, "after": model}, self.settings.window
            )

        _, found = self.work.once(f"validation_{chosen.candidate.slug}_{chosen.trained}", measure)
        again = found["again"]["rise"]
        same = math.isclose(again, chosen.rise, rel_tol=1e-6, abs_tol=1e-9)
        read = "the same perplexities" if same else f"another rise of the perplexity, {again:.2%}"
        rows = [
            {"work": work, "before": found["before"][work], "after": found["after"][work],
             "times as fast": found["after"][work] / found["before"][work]}
            for work in ("prompt", "decoding")
        ]  # fmt: skip
        ratios = {row["work"]: row["times as fast"] for row in rows}
        slower = [work for work, ratio in ratios.items() if ratio < 1]
        warning = f" It is slower here than the float model at {' and '.join(slower)}." if slower else ""
        decision = (
            f"Read back from its files, the model gives {read}. Token by token it differs from whole prompts by "
            f"{found['gap']:.3f} nats, the float model by {found['gap before']:.3f}. It reads prompts {ratios['prompt']:.2f} times and writes {ratios['decoding']:.2f} times "
            f"as fast as the float model on this machine.{warning}"
        )
        return again, Step(TITLES[4], decision, rows)

    # ---- what they are made of

    def attempt(self, candidate: Candidate) -> Tried:
        def measure() -> tuple[dict[str, Tensor], Row]:
            seconds = measurement.seconds(lambda: self.solve(candidate))
            folder = self.work.place(candidate.slug)
            found = self.quality(checkpoint.load(folder))
            return {}, found | {"seconds": seconds, "bytes": size_on_disk(folder)["total"]}

        _, notes = self.work.once(f"sweep_{candidate.slug}", measure)
        return Tried(candidate, notes["bytes"], notes["rise"], notes["error"], notes["seconds"])

    def solve(self, candidate: Candidate) -> None:
        folder = self.work.place(candidate.slug)
        if folder.is_dir():  # whole, or it would have another name
            return
        quantize_folder(
            self.folder, folder, candidate.spec, method=candidate.method, activations=candidate.activations,
            calibration=self.windows() if candidate.calibrated else None, tokenizer=self.tokenizer,
            progress=self.progress(candidate.name),
        )  # fmt: skip

    def train(self, candidate: Candidate, slug: str) -> None:
        folder = self.work.place(slug)
        if folder.is_dir():
            return
        self.solve(candidate)
        student, teacher = (loading.load_float(self.folder) for _ in range(2))
        dtype = student.dtype
        prepare(student.float(), candidate.spec, start=solved(checkpoint.load(self.work.place(candidate.slug))))
        retrain(
            round_together(student), teacher.float(), self.calibration, self.settings.recipe, seed=self.settings.seed,
            checkpoint=self.work.place(f"{slug}_state"), progress=self.progress(f"training {candidate.name}"),
        )  # fmt: skip
        model = convert(student).to(dtype)
        checkpoint.save(model, folder, tokenizer=self.tokenizer)  # type: ignore[arg-type]

    def made(self, tried: Tried) -> Path:
        """The checkpoint of a candidate, made again if it was tidied away."""
        slug = tried.candidate.slug + ("_trained" if tried.trained else "")
        (self.train(tried.candidate, slug) if tried.trained else self.solve(tried.candidate))
        return self.work.place(slug)

    def tidy(self) -> None:
        """Keep only the checkpoint that would be written now."""
        if self.tried:
            self.work.keep([one.candidate.slug for one in self.tried], best(self.tried, self.target).candidate.slug)

    def row(self, tried: Tried) -> Row:
        return {
            "candidate": tried.name, "bytes": tried.bytes, "times smaller": self.dense / tried.bytes, "rise": tried.rise,
            "error": tried.error, "seconds": tried.seconds,
        }  # fmt: skip

    def verdict(self, tried: Tried) -> str:
        if not self.target.fits(tried.bytes):
            return "too large"
        close = abs(tried.rise - self.target.max_loss) < 2 * tried.error
        return ("meets the target" if self.target.met(tried) else "loses too much") + (", narrowly" if close else "")


def _about_checks(checks: Sequence[Row], winner: Tried | None) -> str:
    if not checks:
        return (
            "Nothing to check: the answer looked at no calibration text."
            if winner
            else "Nothing to check: no answer yet."
        )
    last = [row for row in checks if row["candidate"] == checks[-1]["candidate"]]
    rises = ", ".join(f"{row['calibration']} {row['rise']:.2%}" for row in last)
    held = "holds" if winner and winner.candidate.calibrated else "does not hold"
    return f"The answer {held} on another draw of the calibration text. Rise of the perplexity of {last[0]['candidate']}: {rises}."
