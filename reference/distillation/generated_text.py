"""Training text that the model writes itself, where there is no other (data-free)."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def generate_windows(
    model: nn.Module,
    count: int,
    length: int,
    *,
    greedy: tuple[int, ...] = (3, 4, 5),
    seed: int = 0,
    batch: int = 256,
) -> Tensor:
    """Windows of text sampled from the model.

    A window begins with a random token of the vocabulary. The next few are the most likely ones, so
    that the text gets on a path that the model knows; then every token is drawn from the whole
    distribution, because greedy text soon repeats itself.

    Args:
        model: maps ``input_ids`` and a key-value cache to logits (a causal model of transformers, whose output
            layer is ``lm_head``).
        count: windows.
        length: tokens a window.
        greedy: total lengths up to which the choice is greedy; windows take turns.
        seed: of first tokens and of the sampling.
        batch: windows at once; another one gives another text.

    Returns:
        int64 ``[count, length]`` on the CPU.

    Raises:
        ValueError: ``count`` or ``length`` below 1, or no greedy length.

    Source: Liu et al. 2024 (LLM-QAT), and the authors' ``generate_data.py``.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
        ...                      num_hidden_layers=1, num_attention_heads=2)
        >>> model = LlamaForCausalLM(config).eval()
        >>> windows = generate_windows(model, count=3, length=6, seed=1)
        >>> windows.shape, bool((windows == generate_windows(model, count=3, length=6, seed=1)).all())
        (torch.Size([3, 6]), True)

    Chapter: quantization/quantization_aware
    """
    if count < 1 or length < 1 or not greedy:
        raise ValueError(f"count is {count}, length {length}, greedy {greedy}; one or more of each is needed")
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    vocabulary = int(model.get_parameter("lm_head.weight").shape[0])
    turns = torch.tensor(greedy, device=device)
    windows = []
    for begin in range(0, count, batch):
        rows = min(batch, count - begin)
        until = turns[(begin + torch.arange(rows, device=device)) % len(turns)]
        ids = torch.randint(vocabulary, (rows, 1), generator=generator, device=device)
        written, cache = [ids], None
        for position in range(1, length):
            output = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache, last = output.past_key_values, output.logits[:, -1].float()
            drawn = torch.multinomial(last.softmax(-1), 1, generator=generator)
            ids = torch.where((position < until)[:, None], last.argmax(-1, keepdim=True), drawn)
            written.append(ids)
        windows.append(torch.cat(written, dim=1).cpu())
    return torch.cat(windows)
