"""Losses against the model before, and the rooms around them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from reference import checkpoint, workflow
from reference.evaluation import size_on_disk
from reference.models import loading
from reference.models.streaming import StreamedModel
from reference.practice import measurement
from reference.practice.candidates import Candidate, ladder, planned_bytes


def test_a_rise_is_the_ratio_of_perplexities() -> None:
    before = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    after = before + 0.02
    found = measurement.rise(before, after)
    expected = math.exp(float(after.double().mean())) / math.exp(float(before.double().mean())) - 1
    assert found.fraction == pytest.approx(expected, rel=1e-6)
    assert found.error == pytest.approx(0, abs=1e-6)  # a shift that is the same everywhere has no spread


def test_the_error_covers_the_truth_as_often_as_it_should() -> None:
    """Texts drawn anew: the rise of the long run lies within two errors in about 95 % of them."""
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        before = torch.from_numpy(
            generator.exponential(2.0, 128 * 30)
        )  # hard and easy tokens: cancels in the difference
        after = before + torch.from_numpy(generator.normal(0.05, 0.4, 128 * 30))
        found = measurement.rise(before, after)
        inside += abs(found.fraction - (math.exp(0.05) - 1)) < 2 * found.error
    assert 0.9 < inside / 300 < 0.985


def test_a_broken_model_has_lost_everything() -> None:
    before = torch.ones(300)
    assert measurement.rise(before, torch.full((300,), torch.nan)).fraction == math.inf
    assert math.isnan(measurement.rise(before[:100], before[:100] + 1).error)


def test_losses_of_other_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="before is \\(3,\\) and after \\(4,\\)"):
        measurement.rise(torch.ones(3), torch.ones(4))


def test_every_text_gives_as_many_calibration_windows() -> None:
    texts = {"a": torch.arange(500), "b": torch.arange(500, 1000)}
    drawn = torch.cat(measurement.draw(texts, 10, 20, seed=3))
    assert drawn.shape == (10, 20)
    assert (drawn[:5] < 500).all()
    assert (drawn[5:] >= 500).all()
    again, other = (torch.cat(measurement.draw(texts, 10, 20, seed=seed)) for seed in (3, 4))
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)


def test_token_by_token_is_what_a_prompt_gives_in_float(llama: Path) -> None:
    model = loading.load_float(llama)
    assert measurement.decoding_gap(model, torch.arange(30)) < 1e-4


def test_speeds_are_tokens_a_second(llama: Path) -> None:
    model = loading.load_float(llama)
    found = measurement.speeds({"a": model, "b": model}, 32)
    assert found["a"].keys() == {"prompt", "decoding"}
    assert found["a"]["prompt"] > 3 * found["a"]["decoding"] > 0  # 32 tokens at once against one by one


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_bytes_are_planned_as_they_are_written(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, bits: int
) -> None:
    folder = request.getfixturevalue(kind)
    candidates = [Candidate(bits, "round_to_nearest", False, 32)]
    candidates += [Candidate(8, "round_to_nearest", True, 32)] if bits == 8 else []
    for number, candidate in enumerate(candidates):
        model = loading.load_float(folder)
        workflow.quantize(model, candidate.spec, activations=candidate.activations)
        checkpoint.save(model, tmp_path / str(number))
        sizes = size_on_disk(tmp_path / str(number))
        assert planned_bytes(folder, candidate) == sum(value for name, value in sizes.items() if name != "total")


def test_the_ladder_goes_from_small_to_large_and_from_cheap_to_dear(llama: Path, opt: Path) -> None:
    model = StreamedModel(llama).model
    rungs = ladder(model, (8, 3), ("awq", "gptq", "round_to_nearest"), 32)
    assert [rung.name for rung in rungs] == [
        "W3A16 round_to_nearest", "W3A16 gptq", "W3A16 awq",
        "W8A8 round_to_nearest", "W8A16 round_to_nearest", "W8A16 gptq", "W8A16 awq",
    ]  # fmt: skip
    sizes = [planned_bytes(llama, rung) for rung in rungs]
    assert sizes[0] == sizes[2] < sizes[3] <= sizes[4]
    assert len({rung.slug for rung in rungs}) == len(rungs)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((9,), ("gptq",), 32), "bits are \\[9\\]"),
        (((4, 4), ("gptq",), 32), "each once"),
        (((), ("gptq",), 32), "bits are \\[\\]"),
        (((4,), ("best",), 32), "methods are \\['best'\\]"),
        (((4,), (), 32), "methods are \\[\\]"),
        (((4,), ("gptq",), 48), "48"),
    ],
)
def test_a_ladder_that_cannot_be_is_refused(llama: Path, arguments: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ladder(StreamedModel(llama).model, *arguments)
