"""Many runs at once are the runs one by one, of the ordinary classifier and the ordinary masked layers."""

import pytest
import torch
from transformers import BertConfig, BertModel

from reference.models.minilm import Classifier
from reference.models.stacked import StackedEncoder
from reference.pruning.movement import Schedule, attach, finalize, task_loss
from reference.pruning.stacked import PrunedStack, Run, density

CLASSES, LENGTH, TEXTS, STEPS = 3, 7, 6, 12


def classifier(seed: int = 0, dropout: float = 0.0, eps: float = 1e-12) -> Classifier:
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        layer_norm_eps=eps,
    )  # fmt: skip
    encoder = BertModel(config)
    with torch.no_grad():  # larger than at a fresh start, so that gradients are clear of rounding
        for name, parameter in encoder.named_parameters():
            if parameter.ndim == 2 and name.startswith("encoder"):
                parameter.mul_(8)
    return Classifier(encoder, CLASSES, seed)


def stack(seeds: list[int]) -> StackedEncoder:
    return StackedEncoder(classifier().encoder.state_dict(), seeds, classes=CLASSES, heads=2, dropout=0.0)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 30, (TEXTS, LENGTH), generator=generator)
    lengths = torch.randint(2, LENGTH + 1, (TEXTS, 1), generator=generator)
    return ids, torch.arange(LENGTH) < lengths, torch.randint(0, CLASSES, (TEXTS,), generator=generator)


def test_a_stack_computes_what_its_classifiers_compute() -> None:
    batches = [batch(seed) for seed in (0, 1)]
    ids, real = torch.stack([b[0] for b in batches]), torch.stack([b[1] for b in batches])
    together = stack([3, 4])(ids, real)
    for i, seed in enumerate((3, 4)):
        alone = classifier(seed).eval()(batches[i][0], batches[i][1].long())
        torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_the_eps_of_all_norms_is_the_one_given() -> None:
    ids, real, _ = batch(0)
    state = classifier().encoder.state_dict()
    found = StackedEncoder(state, [3], classes=CLASSES, heads=2, dropout=0.0, eps=0.5)(ids[None], real[None])[0]
    torch.testing.assert_close(found, classifier(3, eps=0.5).eval()(ids, real.long()), rtol=1e-5, atol=1e-5)


def test_the_state_of_a_run_is_a_classifiers_state() -> None:
    model = stack([3, 4])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[:, 1] += 0.1
    other = classifier()
    absent, unexpected = other.load_state_dict(model.state_of(1), strict=False)
    assert not unexpected
    assert all("embeddings" in name for name in absent)
    ids, real, _ = batch(0)
    torch.testing.assert_close(
        other.eval()(ids, real.long()), model(ids.expand(2, -1, -1), real.expand(2, -1, -1))[1], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("distilled", [False, True], ids=["labels", "distilled"])
@pytest.mark.parametrize("method", ["movement", "soft", "magnitude"])
def test_a_stack_of_runs_is_the_runs_one_by_one(method: str, distilled: bool) -> None:
    finals = [0.1, 0.2] if method == "soft" else [0.5, 0.2]
    schedules = [
        Schedule(STEPS, final, warmup=2, cooldown=3, penalty=p) for final, p in zip(finals, (50, 500), strict=True)
    ]
    rates = [(3e-3, 0.9), (1e-3, 0.7)]
    teacher = torch.randn(2, TEXTS, CLASSES, generator=torch.Generator().manual_seed(9)) if distilled else None
    runs = [Run(s, *rate) for s, rate in zip(schedules, rates, strict=True)]
    trainer = PrunedStack(stack([3, 4]), method, runs, refresh=1, clip=1.0)
    for step in range(STEPS):
        a, b = batch(2 * step), batch(2 * step + 1)
        trainer.step(step, *(torch.stack(pair) for pair in zip(a, b, strict=True)), teacher, factor=1 - step / STEPS)
    weights = trainer.final_weights()

    for i in range(2):
        model = classifier(3 + i).train()
        pruner = attach(model, model.prunable(), method=method, schedule=schedules[i])
        optimizer = torch.optim.AdamW(
            pruner.parameter_groups(weight_lr=rates[i][0], score_lr=rates[i][1]), weight_decay=0.0
        )
        peaks = [group["lr"] for group in optimizer.param_groups]
        for step in range(STEPS):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * (1 - step / STEPS)
            pruner.step(step)
            ids, real, labels = batch(2 * step + i)
            loss = (
                task_loss(model(ids, real.long()), labels, None if teacher is None else teacher[i]) + pruner.penalty()
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
            optimizer.step()
        assert abs(pruner.density() - float(density(weights)[i])) < 1e-9
        assert pruner.density() < 0.9
        plain = finalize(model)
        query = plain.encoder.encoder.layer[1].attention.self.query.weight
        torch.testing.assert_close(weights["attention"][4, i], query, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            weights["down"][0, i], plain.encoder.encoder.layer[0].output.dense.weight, rtol=1e-3, atol=1e-4
        )


def test_random_masks_are_nested_exact_and_of_their_seed() -> None:
    runs = [
        Run(Schedule(STEPS, final, warmup=1, cooldown=2), 1e-3, seed=seed)
        for final, seed in ((0.5, 1), (0.2, 1), (0.2, 2))
    ]
    trainer = PrunedStack(stack([0, 0, 0]), "random", runs, refresh=4)
    for step in range(STEPS):
        ids, real, labels = (x.expand(3, *x.shape) for x in batch(step))
        trainer.step(step, ids, real, labels)
    masks = {name: weight != 0 for name, weight in trainer.final_weights().items()}
    for mask in masks.values():
        n = mask[0, 0].numel()
        assert mask.sum((2, 3)).tolist() == [[int(0.5 * n), int(0.2 * n), int(0.2 * n)]] * len(mask)
        assert bool((mask[:, 1] <= mask[:, 0]).all())
        assert not torch.equal(mask[:, 1], mask[:, 2])


def test_l0_prunes_more_under_a_larger_penalty_and_dense_prunes_nothing() -> None:
    runs = [Run(Schedule(60, 1.0, penalty=penalty), 1e-3, 0.3) for penalty in (0.0, 300.0)]
    torch.manual_seed(0)
    trainer = PrunedStack(stack([0, 0]), "l0", runs)
    for step in range(60):
        ids, real, labels = (x.expand(2, *x.shape) for x in batch(step % 3))
        trainer.step(step, ids, real, labels)
    free, pushed = density(trainer.final_weights()).tolist()
    assert pushed < 0.2 < free - 0.3
    dense = PrunedStack(stack([0]), "dense", [Run(Schedule(1, 1.0), 1e-3)])
    assert density(dense.final_weights()).tolist() == [1.0]


def test_a_dense_stack_learns() -> None:
    trainer = PrunedStack(stack([0]), "dense", [Run(Schedule(40, 1.0), 3e-3)])
    ids, real, labels = (x.unsqueeze(0) for x in batch(0))
    losses = [float(trainer.step(step, ids, real, labels)) for step in range(40)]
    assert losses[-1] < 0.2 * losses[0]


def test_wrong_settings_are_refused() -> None:
    run = Run(Schedule(3, 0.5), 1e-3)
    with pytest.raises(ValueError, match="method is 'hard'"):
        PrunedStack(stack([0]), "hard", [run])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="runs holds 2 settings; the model has 1"):
        PrunedStack(stack([0]), "movement", [run, run])
    with pytest.raises(ValueError, match="seeds is empty"):
        stack([])
    state = classifier().encoder.state_dict()
    del state["encoder.layer.1.output.dense.bias"]
    with pytest.raises(ValueError, match="state lacks 1 tensors, the first 'encoder.layer.1.output.dense.bias'"):
        StackedEncoder(state, [0], classes=2, heads=2)


def test_half_precision_changes_products_but_not_parameters() -> None:
    state = classifier().encoder.state_dict()
    model = StackedEncoder(state, [0], classes=CLASSES, heads=2, dropout=0.0, dtype=torch.bfloat16)
    ids, real, labels = (x.unsqueeze(0) for x in batch(0))
    exact, rounded = stack([0])(ids, real), model(ids, real)
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.05 * exact.abs().max() + 0.01
    trainer = PrunedStack(model, "movement", [Run(Schedule(8, 0.3, cooldown=2), 1e-3, 1e-2)], refresh=2)
    losses = [float(trainer.step(step, ids, real, labels)) for step in range(8)]
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert abs(float(density(trainer.final_weights())) - 0.3) < 0.01


def test_masks_are_renewed_only_when_due() -> None:
    schedule = Schedule(20, 0.2, warmup=2, cooldown=5)
    trainer = PrunedStack(stack([0]), "magnitude", [Run(schedule, 1e-3)], refresh=6)
    seen = []
    for step in range(20):
        trainer.set(step)
        seen.append(float(trainer.keep["up"].double().mean()))
    changes = [step for step in range(1, 20) if seen[step] != seen[step - 1]]
    assert changes == [6, 12, 16]  # the last is the first step at the final density
    n = trainer.keep["up"][0, 0].numel()
    assert seen[-1] == int(0.2 * n) / n
