"""Expanded blocks: exact at step 0, alone in being trained; a pair computes the mean of its halves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from onmt_llm.config.rope import RopeConfig
from onmt_llm.errors import ConfigError
from onmt_llm.nn.block_expansion import (
    add_twins,
    expanded_config,
    freeze_all_but,
    new_blocks,
    stack_blocks,
    stacked_paths,
    twin_state,
    twins,
)
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.lora.model import without_adapters
from onmt_llm.nn.quantized import Int8Linear, quantize
from onmt_llm.nn.transformer import Transformer

DECODER = {"decoder_layers": 4, "ffn_gated": True, "norm": "rmsnorm", "position": "rotary", "attn_bias": True}
BOTH = {"encoder_layers": 2, "decoder_layers": 3, "position": "sinusoidal", "attn_bias": True}
T5 = {"encoder_layers": 2, "decoder_layers": 2, "position": "t5", "relative_shared": False, "norm": "rmsnorm"}
PARALLEL = {"decoder_layers": 2, "parallel_residual": True, "shared_norm": True, "position": "alibi"}
EXPERTS = {**DECODER, "moe": {"experts": 4, "dense_layers": [1, 2], "shared_size": 8}}
MODELS = {"decoder": DECODER, "both": BOTH, "t5": T5, "parallel": PARALLEL, "experts": EXPERTS}
BLOCKS = {
    "decoder": ["decoder.layers.1", "decoder.layers.3"],
    "both": ["encoder.layers.1", "decoder.layers.0", "decoder.layers.2"],
    "t5": ["encoder.layers.0", "decoder.layers.1"],
    "parallel": ["decoder.layers.1"],
    "experts": ["decoder.layers.1", "decoder.layers.3"],
}


def build(name: str) -> Transformer:
    model = tiny.build(tiny.config(vocab_size=50, kv_heads=2, **MODELS[name]))
    init_weights(model, param_init=0.3, glorot=True)
    return model.eval()


def ids(length: int = 7, seed: int = 1) -> Tensor:
    return torch.randint(1, 50, (2, length), generator=torch.Generator().manual_seed(seed))


def inputs(name: str, *, packed: bool = False) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Positional and keyword arguments of the model, of two documents to the row if `packed`."""
    doc = torch.tensor([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 2, 0]])
    crossing = "encoder_layers" in MODELS[name]
    documents = {"doc_BT": doc, "src_doc_BS": doc} if crossing else {"doc_BT": doc}
    return [ids(seed=2), ids()] if crossing else [ids()], documents if packed else {}


def pairs(model: Transformer, name: str, share: float = 0.3, *, stirred: bool = False) -> Transformer:
    """A copy with twins, which are other blocks than their neighbours if they are `stirred`."""
    model = copy.deepcopy(model)
    add_twins(model, BLOCKS[name], share)
    if stirred:
        with torch.no_grad():
            for tensor in twin_state(model).values():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5)))
    return model


def taller(model: Transformer, name: str) -> Transformer:
    model = copy.deepcopy(model)
    stack_blocks(model, BLOCKS[name])
    return model


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("expand", [pairs, taller])
@torch.no_grad()
def test_new_blocks_change_no_bit(expand: Any, name: str, packed: bool) -> None:
    model = build(name)
    ids, documents = inputs(name, packed=packed)
    assert torch.equal(expand(model, name)(*ids, **documents), model(*ids, **documents))


@pytest.mark.parametrize("kind", ["concat", "stack"])
@torch.no_grad()
def test_nor_in_bf16_where_they_are_float32(kind: str) -> None:
    model = build("decoder").to(torch.bfloat16)
    expanded = (pairs if kind == "concat" else taller)(model, "decoder")
    for path in new_blocks(BLOCKS["decoder"], kind):  # type: ignore[arg-type]
        expanded.get_submodule(path).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(expanded(ids()), model(ids()))


@pytest.mark.parametrize("kind", ["concat", "stack"])
def test_only_they_are_trained(kind: str) -> None:
    expanded = (pairs if kind == "concat" else taller)(build("both"), "both")
    paths = new_blocks(BLOCKS["both"], kind)  # type: ignore[arg-type]
    freeze_all_but(expanded, paths)
    expanded(*inputs("both")[0]).square().sum().backward()
    moved = {name for name, p in expanded.named_parameters() if p.grad is not None}
    assert moved == {name for name, _ in expanded.named_parameters() if name.startswith(tuple(f"{p}." for p in paths))}
    assert len(moved) > 3 * 10


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["decoder", "both"])
def test_a_pair_computes_the_mean_of_its_halves_and_learns_as_that(name: str, recompute: bool) -> None:
    model = build(name)
    paired = pairs(model, name, stirred=True)
    freeze_all_but(paired, new_blocks(BLOCKS[name], "concat"))
    paired.checkpoint_blocks = recompute
    others = {path: copy.deepcopy(pair.twin) for path, pair in twins(paired).items()}
    for path, other in others.items():

        def mixed(_: Any, args: Any, kwargs: Any, own: Tensor, other: Any = other) -> Tensor:
            return 0.7 * own + 0.3 * other(*args, **kwargs)

        model.get_submodule(path).register_forward_hook(mixed, with_kwargs=True)
    ids, documents = inputs(name, packed=True)
    results = [each(*ids, **documents) for each in (model, paired)]
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)
    for result in results:
        result.square().mean().backward()
    for path, pair in twins(paired).items():
        for mine, wanted in zip(pair.twin.parameters(), others[path].parameters(), strict=True):
            torch.testing.assert_close(mine.grad, wanted.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("kind", ["concat", "stack"])
@torch.no_grad()
def test_with_a_cache_both_halves_remember(kind: str, name: str) -> None:
    model = pairs(build(name), name, stirred=True) if kind == "concat" else taller(build(name), name)
    if kind == "stack":
        init_weights(model, param_init=0.3, glorot=True)
    given = inputs(name)[0]
    cache = KVCache(model.cache_layers)
    memory = model.encode(given[0]) if len(given) == 2 else None
    steps = []
    for part in given[-1].split([3, 1, 1, 2], dim=1):
        steps.append(model.logits(model.decode(part, memory, cache=cache)))
        memory = None
    torch.testing.assert_close(torch.cat(steps, dim=1), model(*given), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_pair_looks_at_what_its_halves_do() -> None:
    model = build("both")
    source, target = inputs("both")[0]
    plain = model.decode_with_alignment(target, model.encode(source), align=(-1, 0))[1]
    paired = pairs(model, "both", 0.5)
    assert torch.equal(paired.decode_with_alignment(target, model.encode(source), align=(-1, 0))[1], plain)
    stirred = pairs(model, "both", 0.5, stirred=True)
    weights = stirred.decode_with_alignment(target, model.encode(source), align=(-1, 0))[1]
    assert (weights - plain).abs().max() > 1e-3
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 7))


@torch.no_grad()
def test_a_model_without_its_twins_is_the_base() -> None:
    model = build("decoder")
    paired = pairs(model, "decoder", stirred=True)
    before = paired(ids())
    with without_adapters(paired):
        assert torch.equal(paired(ids()), model(ids()))
    assert torch.equal(paired(ids()), before) and (before - model(ids())).abs().max() > 1e-2


@torch.no_grad()
def test_the_frozen_halves_may_be_quantised() -> None:
    paired = pairs(build("decoder"), "decoder")
    quantize(paired, ["layers.1.base.mlp.up_proj"], "int8")
    pair = paired.get_submodule("decoder.layers.1")
    assert isinstance(pair.base.mlp.up_proj, Int8Linear) and not isinstance(pair.twin.mlp.up_proj, Int8Linear)
    torch.testing.assert_close(paired(ids()), build("decoder")(ids()), atol=0.1, rtol=0.1)


def test_new_blocks_are_of_the_type_of_those_that_they_copy() -> None:
    kinds = ["sliding_attention", "full_attention"]
    config = tiny.config(
        **{"vocab_size": 50, "position": "rotary", "rope": RopeConfig(local_theta=20.0), "rope_layers": [True, False]},
        **{"decoder_layers": 2, "sliding_window": 3, "layer_types": kinds},
    )
    blocks = ["decoder.layers.0", "decoder.layers.1"]
    model = tiny.build(config).eval()
    expected = model(ids(9))
    stack_blocks(model, blocks)
    assert torch.equal(model(ids(9)), expected)
    assert model.config.layer_types == [kinds[0], kinds[0], kinds[1], kinds[1]]
    assert model.config.rope_layers == [True, True, False, False]
    assert expanded_config(model.config, blocks, sign=-1) == config
    init_weights(model, param_init=0.3, glorot=True)
    again = Transformer(model.config).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(ids(9)), model(ids(9))) and not torch.allclose(model(ids(9)), expected)


def test_depth_and_places() -> None:
    blocks = BLOCKS["both"]
    assert stacked_paths(blocks) == ["encoder.layers.2", "decoder.layers.1", "decoder.layers.4"]
    config = tiny.config(vocab_size=50, kv_heads=2, **BOTH)
    assert (expanded_config(config, blocks).encoder_layers, expanded_config(config, blocks).decoder_layers) == (3, 5)
    assert expanded_config(expanded_config(config, blocks), blocks, sign=-1) == config
    model = taller(build("both"), "both")
    assert model.config == expanded_config(config, blocks)
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in Transformer(model.config).named_parameters()
    ]
    with pytest.raises(ConfigError, match="match"):
        add_twins(build("decoder"), ["decoder.layers.9"], 0.5)
