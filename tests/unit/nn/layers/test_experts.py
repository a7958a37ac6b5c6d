"""Experts against a loop over tokens; routing in float32; what is recorded; every expert has a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from onmt_llm.errors import ConfigError
from onmt_llm.nn.layers.experts import Experts, recorded_routing
from onmt_llm.nn.layers.position_wise import FeedForward
from onmt_llm.nn.lora.model import add_lora, freeze_all_but_lora, lora_modules
from onmt_llm.nn.quantized import Int8Linear, quantize
from onmt_llm.nn.transformer import Transformer


def settings(**changes: Any) -> dict[str, Any]:
    return {"experts": 5, "experts_per_token": 2, "expert_size": 24, **changes}


def experts(**changes: Any) -> Experts:
    torch.manual_seed(0)
    return Experts(tiny.llama(moe=settings(**changes))).eval()


def one_by_one(layer: Experts, x_BTD: Tensor) -> Tensor:
    """The definition, token by token."""
    rows = []
    for x_D in x_BTD.flatten(0, 1):
        probs_E = torch.softmax(layer.router.weight @ x_D, dim=0)
        best = sorted(range(len(probs_E)), key=lambda e: -probs_E[e].item())[: layer.per_token]
        total = sum(probs_E[e] for e in best) if layer.normalize else 1.0
        row = torch.stack([probs_E[e] / total * layer.experts[e](x_D) for e in best]).sum(0)
        if layer.shared_expert is not None:
            row = row + torch.sigmoid(layer.shared_gate.weight @ x_D) * layer.shared_expert(x_D)
        rows.append(row)
    return torch.stack(rows).view(x_BTD.shape)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalize_weights": False},
        {"experts_per_token": 1},
        {"experts_per_token": 5},
        {"shared_size": 16},
        {"experts": 1, "experts_per_token": 1},
    ],
)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7)])
def test_each_token_is_computed_by_its_experts(changes: dict[str, Any], shape: tuple[int, int]) -> None:
    layer, x = experts(**changes), torch.randn(*shape, 32)
    torch.testing.assert_close(layer(x), one_by_one(layer, x), atol=1e-6, rtol=1e-5)


def test_the_softmax_over_the_chosen_experts_is_the_normalised_one_over_all() -> None:
    layer = experts()
    logits_ME = torch.randn(6, 5)
    best_MC, chosen_MC = logits_ME.topk(2)
    layer.router = nn.Identity()
    weights_MC, found_MC = layer._route(logits_ME)
    assert torch.equal(found_MC, chosen_MC)
    torch.testing.assert_close(weights_MC, best_MC.softmax(-1))


def test_biases_choose_experts_but_do_not_weight_them() -> None:
    layer = experts(experts_per_token=1, scoring="sigmoid", selection_bias=True, normalize_weights=False)
    layer.selection.bias.copy_(torch.tensor([0.0, 0.0, 5.0, 5.001, 0.0]))
    layer.to(torch.bfloat16)
    assert layer.selection.bias.dtype == torch.float32
    layer.router = nn.Identity()
    weights_MC, chosen_MC = layer._route(torch.zeros(2, 5))
    assert chosen_MC.flatten().tolist() == [3, 3]
    torch.testing.assert_close(weights_MC, torch.full((2, 1), 0.5))


def test_gradients_are_those_of_the_definition_and_no_expert_is_without() -> None:
    layer = experts(experts=8, shared_size=16).train()
    x = torch.randn(1, 2, 32, requires_grad=True)
    layer(x).square().sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    mine, x.grad = x.grad.clone(), None
    layer.zero_grad()
    one_by_one(layer, x).square().sum().backward()
    torch.testing.assert_close(mine, x.grad, atol=1e-6, rtol=1e-5)
    unused = 0
    for name, parameter in layer.named_parameters():
        unused += parameter.grad is None
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)
    assert unused >= 3 * 4


def test_experts_without_tokens_are_left_out_unless_trained() -> None:
    layer, ran = experts(experts=8), []
    for number, expert in enumerate(layer.experts):
        expert.register_forward_hook(lambda *_, number=number: ran.append(number))
    layer(torch.randn(1, 1, 32))
    assert len(ran) == 2
    ran.clear()
    layer.train()(torch.randn(1, 1, 32))
    assert ran == list(range(8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_router_computes_in_float32(dtype: torch.dtype) -> None:
    layer = experts().to(dtype)
    x = torch.randn(1, 9, 32).to(dtype)
    expected = x[0].double() @ layer.router.weight.double().t()
    with torch.autocast("cpu", dtype=torch.bfloat16), recorded_routing(layer) as logits:
        assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(logits[0].double(), expected, atol=1e-6, rtol=1e-5)


def test_routing_is_recorded_layer_by_layer_inside_the_context_only() -> None:
    model = Transformer(tiny.llama(decoder_layers=3, moe=settings(dense_layers=[1])))
    ids = tiny.token_ids(2, 6, high=24)
    with recorded_routing(model) as logits:
        model(ids)
    assert [tuple(one.shape) for one in logits] == [(12, 5)] * 2
    model(ids)
    assert len(logits) == 2


def test_dense_layers_have_an_ordinary_feed_forward_layer() -> None:
    model = Transformer(tiny.llama(decoder_layers=3, moe=settings(dense_layers=[0, 2])))
    kinds = [type(block.mlp) for block in model.decoder.layers]
    assert kinds == [FeedForward, Experts, FeedForward]
    assert model.decoder.layers[0].mlp.up_proj.weight.shape == (48, 32)
    assert model.decoder.layers[1].mlp.experts[3].up_proj.weight.shape == (24, 32)


def test_adapters_and_quantised_layers_reach_experts_by_name() -> None:
    model = Transformer(tiny.llama(moe=settings(experts=3)))
    ids = tiny.token_ids(2, 6, high=24)
    expected = model(ids)
    quantize(model, ["experts.0.up_proj", "decoder.layers.1.mlp.experts.2.down_proj", "v_proj"], "int8")
    assert sum(isinstance(module, Int8Linear) for module in model.modules()) == 2 + 1 + 2
    with pytest.raises(ConfigError, match="router' is a Router"):
        quantize(model, ["router"], "int8")
    add_lora(model, ["up_proj", "router", "experts.1.down_proj"], rank=2, alpha=4.0)
    assert len(lora_modules(model)) == 2 * 3 + 2 + 2
    freeze_all_but_lora(model)
    torch.testing.assert_close(model(ids), expected, atol=0.1, rtol=0.1)
    model.train()(ids).square().sum().backward()
    gradients = {path: module.lora_b.grad for path, module in lora_modules(model).items()}
    assert all(gradient is not None for gradient in gradients.values())
    assert all(gradients[f"decoder.layers.{i}.mlp.router"].abs().max() > 0 for i in range(2))
