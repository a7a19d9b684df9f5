"""Models that a workflow ends with in seconds, and how it is called."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from reference import cli

TEXT = "It is a truth – universally – acknowledged. "


def tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that has learned a sentence, so that compressing it costs something."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    made = tokenizer()
    ids = torch.tensor(made(TEXT * 20)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(30):
        rows = torch.stack([ids[start : start + 64] for start in range(7 * step % 40, 400, 50)])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OPT of random weights."""
    folder = tmp_path_factory.mktemp("models") / "opt"
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=256, hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=64, init_std=0.2,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sentence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "<b>mine & yours.txt"
    file.write_text(TEXT * 20, encoding="utf-8")
    return file


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict:
        return json.loads(self.out)

    @property
    def steps(self) -> dict[str, dict]:
        return {step["title"]: step for step in self.json["steps"]}


@pytest.fixture
def run(capfd: pytest.CaptureFixture, sentence: Path) -> Callable[..., Result]:
    """A workflow on the sentence, in this process; anything but SystemExit that escapes fails the test."""

    def call(workflow: str, model: object, *arguments: object) -> Result:
        capfd.readouterr()
        code = 0
        texts = ["--text", sentence, "--calibration", sentence, "--window", 32, "--batch", 4]
        try:
            cli.main([str(argument) for argument in ("workflow", workflow, model, *texts, *arguments)])
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call
