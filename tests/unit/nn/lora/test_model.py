"""LoRA: exact at step 0, alone in being trained, merged equal to unmerged."""

from __future__ import annotations

import pytest
import torch

import tiny
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.nn.lora.model import add_lora, freeze_all_but_lora, load_lora_state, lora_modules, lora_state, merge_lora
from onmt_llm.nn.lora.variant import LoRAVariant
from onmt_llm.nn.quantized import linear_weight, quantize
from onmt_llm.nn.transformer import Transformer

LAYERS = ["q_proj", "k_proj", "down_proj"]
# rank * (in + out) of the layers above, in two blocks
PER_RANK = 2 * ((32 + 32) + (32 + 16) + (48 + 32))


def build(**extra: object) -> Transformer:
    model = tiny.build(tiny.llama(vocab_size=50, activation="relu", attn_bias=True, **extra))
    torch.nn.init.normal_(model.decoder.embed_tokens.weight, std=0.3)
    return model


def ids() -> torch.Tensor:
    return torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(1))


def stir(model: Transformer) -> None:
    for name, tensor in lora_state(model).items():
        noise = 0.2 * torch.randn_like(tensor)
        tensor.copy_(tensor * (1 + noise) if name.endswith("magnitude") else noise)


DORA = LoRAVariant(dora=True)
MIXED = LoRAVariant(
    rslora=True, dora=True, rank_pattern={"k_proj": 5, "layers.1.self_attn.k_proj": 1}, alpha_pattern={"k_proj": 2.0}
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_new_adapter_changes_no_bit_and_only_it_is_trained(dtype: torch.dtype, tied: bool) -> None:
    model = build(tie_embeddings=tied).to(dtype)
    expected = model(ids())
    paths = add_lora(model, LAYERS, rank=3, alpha=5.0, embedding=True)
    assert len(paths) == 2 * len(LAYERS) + 1
    assert freeze_all_but_lora(model) == 3 * (PER_RANK + 50 + 32)
    logits = model(ids())
    assert torch.equal(logits, expected)
    logits.logsumexp(-1).sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {f"{path}.{leaf}" for path in paths for leaf in ("lora_a", "lora_b")} == set(lora_state(model))
    assert all(module.lora_b.grad.abs().max() > 0 for module in lora_modules(model).values())
    assert all(p.dtype == torch.float32 for p in lora_state(model).values())


def test_lm_head_is_trained_only_when_named() -> None:
    model = build()
    add_lora(model, ["q_proj"], rank=2, alpha=2.0)
    freeze_all_but_lora(model)
    assert not any(p.requires_grad for p in model.lm_head.parameters())
    model = build()
    assert add_lora(model, ["lm_head"], rank=2, alpha=2.0) == ["lm_head"]
    assert freeze_all_but_lora(model) == 2 * (32 + 50)


@pytest.mark.parametrize("variant", [LoRAVariant(), DORA, MIXED], ids=["plain", "dora", "mixed"])
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_merged_equals_unmerged(tied: bool, variant: LoRAVariant) -> None:
    model = build(tie_embeddings=tied).eval()
    plain = model(ids())
    paths = add_lora(model, LAYERS, rank=3, alpha=5.0, embedding=True, variant=variant)
    stir(model)
    expected = model(ids())
    assert (expected - plain).abs().max() > 0.1
    assert merge_lora(model) == paths
    assert not lora_modules(model)
    assert (model(ids()) - expected).abs().max() <= 1e-4


def test_ranks_and_scales_of_single_layers() -> None:
    model = build()
    add_lora(model, LAYERS, rank=4, alpha=6.0, variant=MIXED)
    sizes = {path[15:]: (len(m.lora_a), m.scale) for path, m in lora_modules(model).items()}
    assert sizes["0.self_attn.q_proj"] == (4, 6.0 / 2)
    assert sizes["0.self_attn.k_proj"] == (5, pytest.approx(2.0 / 5**0.5))
    assert sizes["1.self_attn.k_proj"] == (1, 2.0)
    with pytest.raises(ConfigError, match="lora_rank_pattern must name layers that have an adapter, but v_proj"):
        add_lora(build(), LAYERS, rank=4, alpha=6.0, variant=LoRAVariant(rank_pattern={"v_proj": 2}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dora_begins_with_the_lengths_that_the_rows_have_and_trains_them(dtype: torch.dtype) -> None:
    model = build().to(dtype)
    expected = model(ids())
    paths = add_lora(model, LAYERS, rank=3, alpha=5.0, embedding=True, variant=DORA)
    outputs = 2 * (32 + 16 + 32) + 32
    assert freeze_all_but_lora(model) == 3 * (PER_RANK + 50 + 32) + outputs
    logits = model(ids())
    assert torch.equal(logits, expected)
    logits.logsumexp(-1).sum().backward()
    assert all(module.lora_magnitude.grad.abs().max() > 0 for module in lora_modules(model).values())
    module = lora_modules(model)[paths[1]]
    torch.testing.assert_close(module.lora_magnitude, module.base.weight.float().norm(dim=1))


@pytest.mark.parametrize("quant_type", ["int8", "bnb_8bit", "bnb_NF4"])
@torch.no_grad()
def test_dora_over_quantised_layers_is_that_over_their_weights(quant_type: str) -> None:
    if quant_type != "int8":
        pytest.importorskip("bitsandbytes")
    model = build()
    quantize(model, LAYERS, quant_type)
    plain = build()
    for path in add_lora(model, LAYERS, rank=2, alpha=2.0, variant=DORA):
        plain.get_submodule(path).weight.copy_(linear_weight(model.get_submodule(path).base))
    add_lora(plain, LAYERS, rank=2, alpha=2.0, variant=DORA)
    stir(model)
    load_lora_state(plain, lora_state(model))
    # bitsandbytes rounds the input of its 8-bit layers
    torch.testing.assert_close(model(ids()), plain(ids()), atol=0.1 if quant_type == "bnb_8bit" else 1e-4, rtol=0)


def test_tied_output_layer_follows_the_adapted_embedding() -> None:
    model = build(tie_embeddings=True)
    add_lora(model, [], rank=3, alpha=5.0, embedding=True)
    stir(model)
    embedding, hidden = model.decoder.embed_tokens, torch.randn(2, 5, 32)
    torch.testing.assert_close(model.logits(hidden), hidden @ embedding.merged_weight().t(), atol=1e-4, rtol=0)
    torch.testing.assert_close(embedding(ids()), embedding.merged_weight()[ids()], atol=1e-4, rtol=0)


@pytest.mark.parametrize("quant_type", ["int8", "bnb_8bit", "bnb_NF4", "bnb_FP4"])
def test_adapter_over_quantised_layers(quant_type: str) -> None:
    if quant_type != "int8":
        pytest.importorskip("bitsandbytes")
    model = build()
    quantize(model, LAYERS, quant_type)
    expected = model(ids())
    paths = add_lora(model, LAYERS, rank=2, alpha=2.0)
    assert freeze_all_but_lora(model) == 2 * PER_RANK
    logits = model(ids())
    assert torch.equal(logits, expected)
    logits.logsumexp(-1).sum().backward()
    module = lora_modules(model)[paths[0]]
    assert module.lora_b.grad.abs().max() > 0
    assert module.merged_weight().shape == (32, 32)
    assert merge_lora(model) == []


def test_dropout_is_active_in_training_only() -> None:
    model = build()
    add_lora(model, LAYERS, rank=3, alpha=5.0, dropout=0.5, embedding=True)
    stir(model)
    assert not torch.equal(model(ids()), model(ids()))
    model.eval()
    assert torch.equal(model(ids()), model(ids()))


def test_state_round_trip_and_misfits() -> None:
    first, second = build(), build()
    for model in (first, second):
        add_lora(model, LAYERS, rank=3, alpha=5.0)
    stir(first)
    state = lora_state(first)
    assert "decoder.layers.0.self_attn.q_proj.lora_a" in state
    load_lora_state(second, state)
    assert torch.equal(first(ids()), second(ids()))
    del state["decoder.layers.0.mlp.down_proj.lora_b"]
    state["decoder.layers.0.self_attn.q_proj.lora_a"] = torch.zeros(4, 32)
    state["lm_head.lora_a"] = torch.zeros(3, 32)
    with pytest.raises(CheckpointError) as error:
        load_lora_state(second, state)
    for part in ("down_proj.lora_b is missing", "lm_head.lora_a belongs to no", "(4, 32) instead of (3, 32)"):
        assert part in str(error.value)


def test_errors() -> None:
    model = build(tie_embeddings=True)
    with pytest.raises(ConfigError, match="tied to the embedding"):
        add_lora(model, ["lm_head"], rank=2, alpha=1.0)
    with pytest.raises(ConfigError, match="lora_rank must be >= 1"):
        add_lora(model, ["q_proj"], rank=0, alpha=1.0)
    with pytest.raises(ConfigError, match="lora_layers must name at least one layer"):
        add_lora(model, [], rank=2, alpha=1.0)
    with pytest.raises(ConfigError, match="attn_norm' is a RMSNorm"):
        add_lora(model, ["attn_norm", "q_proj"], rank=2, alpha=1.0)
    assert not lora_modules(model)
    add_lora(model, ["q_proj"], rank=2, alpha=1.0)
    with pytest.raises(ConfigError, match="has one already"):
        add_lora(model, ["q_proj"], rank=2, alpha=1.0)


@pytest.mark.parametrize(
    ("names", "option", "widest"), [(["q_proj"], False, 32), (["up_proj"], False, 48), ([], True, 50)]
)
def test_a_rank_beyond_the_matrix_is_refused(names: list[str], option: bool, widest: int) -> None:
    assert add_lora(build(), names, rank=widest, alpha=1.0, embedding=option)
    with pytest.raises(ConfigError, match=f"lora_rank must be at most {widest}, .*, but is {10**6}"):
        add_lora(build(), names, rank=10**6, alpha=1.0, embedding=option)
