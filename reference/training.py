"""Training loops: language models, resumably, and small classifiers in memory."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from reference.files import atomic_directory


def trapezoid(step: int, total: int, *, warmup: int, decay: float) -> float:
    """Learning-rate factor that rises, stays and falls: linear warm-up, constant, linear to zero.

    Args:
        step: step about to be taken, from 0.
        total: number of steps of the whole run.
        warmup: steps of the rise.
        decay: fraction of ``total`` spent on the fall, ``0 <= decay <= 1``.

    Returns:
        A factor in [0, 1]. ``total`` may still change while the factor is constant, which is
        what makes a long run extendable.

    Source: Hägele et al. 2024, "Scaling laws and compute-optimal training beyond fixed
    training durations", section 3.

    Example:
        >>> [trapezoid(step, 10, warmup=2, decay=0.5) for step in range(10)]
        [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]

    Chapter: none (training plumbing)
    """
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = (total - step) / (decay * total) if decay > 0 else 1.0
    return min(rise, 1.0, max(0.0, fall))


def random_windows(
    tokens: list[np.ndarray], share: list[float], *, batch: int, length: int, seed: int, step: int
) -> Tensor:
    """Draw the windows of one training step; the same ``seed`` and ``step`` give the same windows.

    Args:
        tokens: one array of token ids a domain.
        share: probability of each domain, summing to 1.
        batch: windows to draw.
        length: tokens a window.
        seed: of the run.
        step: of the run, so that a resumed run sees what an unbroken one would have seen.

    Returns:
        int64 ``[batch, length]``.

    Example:
        >>> domains = [np.arange(100), np.arange(1000, 1100)]
        >>> windows = random_windows(domains, [0.5, 0.5], batch=4, length=3, seed=0, step=7)
        >>> windows.diff()[0]  # neighbours in one of the texts
        tensor([1, 1])
        >>> torch.equal(windows, random_windows(domains, [0.5, 0.5], batch=4, length=3, seed=0, step=7))
        True

    Chapter: none (training plumbing)
    """
    generator = np.random.default_rng([seed, step])
    rows = []
    for domain in generator.choice(len(tokens), size=batch, p=share):
        start = generator.integers(0, len(tokens[domain]) - length + 1)
        rows.append(tokens[domain][start : start + length].astype(np.int64))
    return torch.from_numpy(np.stack(rows))


def train(
    model: nn.Module,
    loss_of_step: Callable[[int], Tensor],
    optimizers: list[torch.optim.Optimizer],
    *,
    steps: int,
    warmup: int = 0,
    decay: float = 0.0,
    clip: float = 1.0,
    checkpoint: Path | None = None,
    every: int = 500,
    accelerator: Accelerator | None = None,
) -> Iterator[dict]:
    """Take the remaining steps of a run, yielding ``{"step", "loss", "rate"}`` after each.

    A generator, so that the caller decides what to show, when to evaluate and when to stop.

    Args:
        model: trained in place.
        loss_of_step: maps a step number to the scalar loss of that step's batch.
        optimizers: their current rates are the peak rates.
        steps: total of the run, steps of an earlier part included.
        warmup, decay: see :func:`trapezoid`.
        clip: largest norm of the gradient.
        checkpoint: folder to resume from and to save to; None keeps everything in memory.
        every: steps between two saved states.
        accelerator: that prepared the model and the optimizers, for mixed precision and for several
            processes. Each computes the loss of its own rows (:func:`my_rows`), gradients and the
            yielded loss are means over processes, and the first process writes.

    Returns:
        A generator of dictionaries, each with the ``step`` taken (from 1), its ``loss``, and the ``rate`` factor of the schedule.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> model.weight.data.fill_(4.0).item()
        4.0
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
        >>> def loss(step):
        ...     return model.weight.square().sum()
        >>> run = train(model, loss, [optimizer], steps=4, clip=100.0)  # each step halves the weight
        >>> [round(taken["loss"], 2) for taken in run]
        [16.0, 4.0, 1.0, 0.25]

    Chapter: none (training plumbing; the overview runs it)
    """
    trained = accelerator.unwrap_model(model) if accelerator else model
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    first = load_state(checkpoint, trained, optimizers) if checkpoint and checkpoint.exists() else 0
    for step in range(first, steps):
        factor = trapezoid(step, steps, warmup=warmup, decay=decay)
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        model.train()
        loss = loss_of_step(step)
        if accelerator:
            accelerator.backward(loss)
            loss = accelerator.reduce(loss.detach(), "mean")
        else:
            loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if checkpoint and ((step + 1) % every == 0 or step + 1 == steps):
            if accelerator is None or accelerator.is_main_process:
                save_state(checkpoint, trained, optimizers, step + 1)
            if accelerator:
                accelerator.wait_for_everyone()
        yield {"step": step + 1, "loss": loss.item(), "rate": factor}


def my_rows(windows: Tensor, accelerator: Accelerator) -> Tensor:
    """This process's part of a step's windows, on its device.

    Args:
        windows: ``[batch, length]``, the same in every process.
        accelerator: knows the processes.

    Returns:
        int64 ``[batch / processes, length]``: every n-th row, n the number of processes.

    Raises:
        ValueError: the processes would not get equally many, and a mean over them would weigh rows unequally.

    Example:
        >>> from types import SimpleNamespace
        >>> second_of_two = SimpleNamespace(num_processes=2, process_index=1, device="cpu")
        >>> my_rows(torch.tensor([[0], [1], [2], [3]]), second_of_two).tolist()
        [[1], [3]]

    Chapter: none (training plumbing)
    """
    if len(windows) % accelerator.num_processes:
        raise ValueError(f"batch is {len(windows)}; it must be a multiple of the {accelerator.num_processes} processes")
    return windows[accelerator.process_index :: accelerator.num_processes].to(accelerator.device)


def save_state(folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    """Write weights, optimiser tensors and the step to ``folder`` as safetensors, all at once.

    Args:
        folder: created, or replaced as a whole.
        model, optimizers: their parameters, buffers (the running statistics of a batch norm) and states.
        step: steps taken so far.

    Raises:
        OSError: the disk is full or not writable; an older state stays as it was.

    Example:
        >>> import os, tempfile
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_state(Path(folder, "run"), model, [optimizer], step=500)
        ...     sorted(os.listdir(f"{folder}/run"))
        ['model.safetensors', 'optimizer_0.safetensors', 'state.json']

    Chapter: none (plumbing: writes files)
    """
    with atomic_directory(folder, replace=True) as temporary:
        save_file({k: v.detach().contiguous() for k, v in _tensors(model).items()}, temporary / "model.safetensors")
        for number, optimizer in enumerate(optimizers):
            tensors = {
                f"{index}.{name}": torch.as_tensor(value).contiguous()
                for index, entries in optimizer.state_dict()["state"].items()
                for name, value in entries.items()
            }
            save_file(tensors, temporary / f"optimizer_{number}.safetensors")
        (temporary / "state.json").write_text(json.dumps({"step": step}))


def load_state(folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    """Restore what :func:`save_state` wrote, in place; returns the number of steps taken so far.

    Args:
        folder: of :func:`save_state`.
        model, optimizers: of the same shapes as those that were saved.

    Raises:
        FileNotFoundError: the folder lacks a file.

    Example:
        >>> import tempfile
        >>> model, other = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_state(Path(folder, "run"), model, [], step=500)
        ...     load_state(Path(folder, "run"), other, [])
        500
        >>> torch.equal(model.weight, other.weight)
        True

    Chapter: none (plumbing: reads files)
    """
    weights = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            tensor.copy_(weights[name])
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(folder / f"optimizer_{number}.safetensors").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads((folder / "state.json").read_text())["step"]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, and the buffers that are part of a model's state, a tensor with two names once."""
    state = model.state_dict().keys()
    return dict(model.named_parameters()) | {name: buffer for name, buffer in model.named_buffers() if name in state}


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer,
    batch: int = 64,
    seed: int = 0,
    after_step: Callable[[], object] | None = None,
    schedule: Callable[[int, int], float] | None = None,
) -> list[float]:
    """Train a classifier on data that fits in memory, by cross-entropy.

    Args:
        model: trained in place; maps a batch of images to logits.
        images: ``[n, …]``.
        labels: int64 ``[n]``.
        epochs: passes over the data; 0 does nothing.
        optimizer: holds the parameters to train; its current rates are the peak rates, and are
            its rates again at the end.
        batch: images a step; the last step of an epoch may have fewer.
        seed: of the order of the images, which is another one in each epoch.
        after_step: called after each step of the optimiser, for example to apply masks.
        schedule: maps step and number of steps to a factor on the rates, see :func:`trapezoid`.

    Returns:
        The mean loss of each epoch.

    Raises:
        ValueError: the numbers of images and labels differ, there are none, or the loss is not finite.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> history = fit(model, torch.eye(2), torch.tensor([0, 1]), epochs=20, optimizer=optimizer)
        >>> len(history), history[-1] < history[0], model(torch.eye(2)).argmax(1)
        (20, True, tensor([0, 1]))

    Chapter: none (training plumbing)
    """
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"images and labels must be equally many and some, got {len(images)} and {len(labels)}")
    generator = torch.Generator().manual_seed(seed)
    peaks = [group["lr"] for group in optimizer.param_groups]
    total, step = epochs * -(-len(images) // batch), 0
    history = []
    model.train()
    for _ in range(epochs):
        loss_sum = 0.0
        for rows in torch.randperm(len(images), generator=generator).split(batch):
            if schedule is not None:
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * schedule(step, total)
            loss = functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if after_step is not None:
                after_step()
            loss_sum += loss.item() * len(rows)
            step += 1
        history.append(loss_sum / len(images))
        if not np.isfinite(history[-1]):
            raise ValueError(f"the loss became {history[-1]} in epoch {len(history)}; lower the optimizer's rate")
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak
    return history
