"""A student cut out of its teacher against the teacher's kept blocks, run one by one."""

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from reference.distillation.student import from_layers

SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 64}


def llama(**options: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, max_position_embeddings=64, **options)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 64, (2, 11), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def run_blocks(teacher: LlamaForCausalLM, layers: list[int], ids: Tensor) -> Tensor:
    """Embedding, the chosen blocks with a causal mask of our own, norm, head."""
    length = ids.shape[1]
    positions = torch.arange(length).unsqueeze(0)
    hidden = teacher.model.embed_tokens(ids)
    rotary = teacher.model.rotary_emb(hidden, positions)
    mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
    for index in layers:
        out = teacher.model.layers[index](
            hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary
        )
        hidden = out[0] if isinstance(out, tuple) else out
    return teacher.lm_head(teacher.model.norm(hidden))


@pytest.mark.parametrize("layers", [[0, 2], [1], [0, 1, 3], [0, 1, 2, 3]])
def test_forward_is_the_kept_blocks_in_order(layers: list[int], ids: Tensor) -> None:
    teacher = llama()
    with torch.no_grad():
        ours = from_layers(teacher, layers)(input_ids=ids).logits
    torch.testing.assert_close(ours, run_blocks(teacher, layers, ids), rtol=1e-5, atol=1e-6)


def test_all_blocks_give_the_teacher_itself(ids: Tensor) -> None:
    teacher = llama()
    with torch.no_grad():
        assert torch.equal(from_layers(teacher, [0, 1, 2, 3])(input_ids=ids).logits, teacher(input_ids=ids).logits)


def test_generation_with_the_cache_equals_generation_without(ids: Tensor) -> None:
    """The cache is addressed by each block's number: numbers left as they were would break it."""
    student = from_layers(llama(), [1, 3])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options["attention_mask"] = torch.ones_like(ids)
    cached = student.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, student.generate(ids, use_cache=False, **options))
    assert [block.self_attn.layer_idx for block in student.model.layers] == [0, 1]


def test_one_token_at_a_time_gives_the_logits_of_the_whole_text(ids: Tensor) -> None:
    student = from_layers(llama(), [0, 3])
    with torch.no_grad():
        whole = student(input_ids=ids).logits
        cache, steps = None, []
        for position in range(ids.shape[1]):
            out = student(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)


def test_teacher_is_not_changed_and_shares_no_memory(ids: Tensor) -> None:
    teacher = llama()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = from_layers(teacher, [0, 2])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert len(teacher.model.layers) == teacher.config.num_hidden_layers == 4
    assert [block.self_attn.layer_idx for block in teacher.model.layers] == [0, 1, 2, 3]


def test_tied_embeddings_stay_tied() -> None:
    student = from_layers(llama(tie_word_embeddings=True), [0, 2])
    assert student.lm_head.weight.data_ptr() == student.model.embed_tokens.weight.data_ptr()


def test_config_describes_the_student(ids: Tensor, tmp_path: object) -> None:
    """So that a saved student loads as what it is."""
    student = from_layers(llama(), [0, 2, 3])
    assert student.config.num_hidden_layers == 3
    student.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, student(input_ids=ids).logits)


def opt() -> PreTrainedModel:
    return OPTForCausalLM(OPTConfig(**SMALL, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32))


def gpt_neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, intermediate_size=48, max_position_embeddings=64))


def bert() -> PreTrainedModel:
    return BertModel(BertConfig(**SMALL, intermediate_size=48, max_position_embeddings=64))


def qwen3() -> PreTrainedModel:
    """Has ``layer_types``, one entry a block, which must be cut too."""
    return Qwen3ForCausalLM(Qwen3Config(**SMALL, intermediate_size=48, num_key_value_heads=2, head_dim=8))


@pytest.mark.parametrize("make", [opt, gpt_neox, bert, qwen3])
def test_other_architectures_run_with_fewer_blocks(make: object, ids: Tensor) -> None:
    torch.manual_seed(0)
    teacher = make().eval()
    student = from_layers(teacher, [0, 2])
    with torch.no_grad():
        ours, theirs = student(input_ids=ids)[0], teacher(input_ids=ids)[0]
    assert ours.shape == theirs.shape
    assert not torch.allclose(ours, theirs)
    assert student.config.num_hidden_layers == 2


@pytest.mark.parametrize("layers", [[], [2, 0], [0, 0], [0, 4], [-1, 2]])
def test_layers_that_are_not_rising_indices_are_refused_with_the_range(layers: list[int]) -> None:
    with pytest.raises(ValueError, match="0 to 3"):
        from_layers(llama(), layers)


def test_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="supported"):
        from_layers(torch.nn.Linear(2, 2), [0])
