"""Optimisers by name, parameter groups, gradient clipping."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from onmt_llm import log
from onmt_llm.config.learning import OptimConfig
from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.nn.lora.model import add_lora, freeze_all_but_lora
from onmt_llm.nn.lora.variant import LoRAVariant
from onmt_llm.training.optim import build as optim


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"embed": nn.Embedding(5, 4), "linear": nn.Linear(4, 3), "norm": nn.LayerNorm(4), "frozen": nn.Linear(4, 4)}
    )


def needed(name: str) -> None:
    """Skip where the package of an optimiser is missing."""
    if "bit" in name:
        pytest.importorskip("bitsandbytes")
    if name in ("lion", "muon", "galore"):
        pytest.importorskip("pytorch_optimizer")


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_every_optimiser_makes_the_loss_fall(name: str) -> None:
    needed(name)
    torch.manual_seed(0)
    model = nn.Linear(64, 80)
    x, y = torch.randn(16, 64), torch.randn(16, 80)
    rate = 1.0 if name == "adadelta" else 0.01
    optimizer = optim.build_optimizer(model, OptimConfig(optim=name, learning_rate=rate, galore_rank=8))
    losses = []
    for _ in range(15):
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_biases_norms_embeddings_and_frozen_weights_get_no_decay() -> None:
    model = small_model()
    model["frozen"].requires_grad_(False)
    decayed, spared = optim.parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0.0
    assert [id(p) for p in decayed["params"]] == [id(model["linear"].weight)]
    assert {id(p) for p in spared["params"]} == {
        id(p) for p in (model["embed"].weight, model["linear"].bias, model["norm"].weight, model["norm"].bias)
    }


def test_b_matrices_of_adapters_learn_at_a_rate_of_their_own() -> None:
    model = small_model()
    add_lora(model, ["linear"], rank=2, alpha=2.0, variant=LoRAVariant(dora=True))
    freeze_all_but_lora(model)
    optimizer = optim.build_optimizer(model, OptimConfig(loraplus_lr_ratio=16.0, weight_decay=0.1))
    optim.set_learning_rate(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    layer = model["linear"]
    assert [rates[id(p)] for p in (layer.lora_a, layer.lora_b, layer.lora_magnitude)] == [0.5, 8.0, 0.5]


def test_matrices_of_the_blocks_are_treated_apart() -> None:
    pytest.importorskip("pytorch_optimizer")
    model = nn.ModuleDict({"lm_head": nn.Linear(4, 5), **small_model()})
    optimizer = optim.build_optimizer(model, OptimConfig(optim="muon", weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    kinds = {name: "momentum_buffer" in optimizer.state[p] for name, p in model.named_parameters()}
    assert {name for name, orthogonal in kinds.items() if orthogonal} == {"linear.weight", "frozen.weight"}
    galore = optim.build_optimizer(model, OptimConfig(optim="galore", galore_rank=2))
    galore.step()
    assert galore.state[model["linear"].weight]["exp_avg"].shape == (2, 4)
    assert galore.state[model["lm_head"].weight]["exp_avg"].shape == (5, 4)


def stepped(name: str, gradients: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """How a hidden matrix has changed after steps with these gradients at rate 0.01, and what was kept of them."""
    needed(name)
    torch.manual_seed(0)
    layer = nn.Linear(64, 80, bias=False)
    before = layer.weight.detach().clone()
    optimizer = optim.build_optimizer(layer, OptimConfig(optim=name, learning_rate=0.01, galore_rank=8, weight_decay=0))
    for gradient in gradients:
        layer.weight.grad = gradient.clone()
        optimizer.step()
    state = {key: value for key, value in optimizer.state[layer.weight].items() if isinstance(value, torch.Tensor)}
    return layer.weight.detach() - before, state


@pytest.fixture
def gradients() -> list[torch.Tensor]:
    """Ten matrices whose singular values are a hundredfold apart."""
    generator = torch.Generator().manual_seed(1)
    made = torch.randn(10, 80, 64, generator=generator) + torch.randn(80, 64, generator=generator)
    left, _, right = torch.linalg.svd(made, full_matrices=False)
    return list(left @ torch.diag(torch.logspace(0, -2, 64)) @ right)


@pytest.mark.parametrize("name", ["lion", "lion8bit", "pagedlion8bit"])
def test_lion_takes_the_sign(name: str, gradients: list[torch.Tensor]) -> None:
    change, _ = stepped(name, gradients[:1])
    torch.testing.assert_close(change, -0.01 * gradients[0].sign(), rtol=1e-4, atol=1e-7)


def test_muon_makes_the_step_orthogonal(gradients: list[torch.Tensor]) -> None:
    sizes = torch.linalg.svdvals(stepped("muon", gradients[:1])[0])
    assert sizes.max() < 2 * sizes.min()
    # as large as AdamW's steps are: about 0.2 of the rate for each weight
    assert 0.1 < stepped("muon", gradients[:1])[0].square().mean().sqrt() / 0.01 < 0.3


def test_galore_steps_within_the_leading_directions(gradients: list[torch.Tensor]) -> None:
    change, state = stepped("galore", gradients[:1])
    _, _, right = torch.linalg.svd(gradients[0], full_matrices=False)
    outside = change - change @ right[:8].T @ right[:8]
    assert change.norm() > 0.01 and outside.norm() < 1e-4 * change.norm()
    assert state["exp_avg"].shape == (80, 8)


def test_adafactor_keeps_rows_and_columns_alone(gradients: list[torch.Tensor]) -> None:
    _, state = stepped("adafactor", gradients)
    squares = torch.stack(gradients).square()
    assert sorted(tensor.numel() for tensor in state.values()) == [1, 64, 80]
    for key, dim in (("row_var", 2), ("col_var", 1)):
        mean = squares.mean(dim)
        assert torch.corrcoef(torch.stack([state[key].flatten(), mean.mean(0)]))[0, 1] > 0.9


@pytest.mark.parametrize("name", ["adamw8bit", "pagedadamw8bit", "pagedadamw32bit", "lion8bit", "pagedlion8bit"])
def test_small_moments_do_what_large_ones_do(name: str, gradients: list[torch.Tensor]) -> None:
    change, state = stepped(name, gradients)
    exact, _ = stepped("lion" if "lion" in name else "adamw", gradients)
    assert state["state1"].dtype == (torch.uint8 if "8bit" in name else torch.float32)
    if "32" in name:
        torch.testing.assert_close(change, exact, rtol=1e-4, atol=1e-6)
    else:
        assert not torch.equal(change, exact)
        assert (change - exact).norm() < 0.1 * exact.norm()


def test_bf16_weights_follow_float32_ones_where_bf16_alone_stands_still() -> None:
    torch.manual_seed(0)
    start, gradients = torch.ones(32, 32), (torch.randn(300, 32, 32) + 0.5).bfloat16()
    settings = OptimConfig(optim="adamw", learning_rate=1e-4, weight_decay=0.01)
    ends = {}
    for kind in ("float32", "kahan", "bf16"):
        model = nn.Linear(32, 32, bias=False)
        model.weight.data = start.clone() if kind == "float32" else start.bfloat16()
        optimizer = optim.build_optimizer(model, settings, pure_bf16=kind == "kahan")
        for gradient in gradients:
            model.weight.grad = gradient.to(model.weight.dtype)
            optimizer.step()
        ends[kind] = model.weight.detach().float()
        if kind == "kahan":
            ends["with the rest"] = ends[kind] + optimizer.state[model.weight]["rest"]
    assert (ends["bf16"] - start).abs().mean() < 0.1 * (ends["float32"] - start).abs().mean()
    # half a unit in the last place of bf16 below 1, and the same of both numbers together
    assert (ends["kahan"] - ends["float32"]).abs().max() <= 2**-9 + 1e-4
    assert (ends["with the rest"] - ends["float32"]).abs().max() < 1e-4
    with pytest.raises(ConfigError, match="pure_bf16 needs optim: adamw, but optim is sgd"):
        optim.build_optimizer(nn.Linear(2, 2), OptimConfig(optim="sgd"), pure_bf16=True)


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad"])
def test_fused_steps_are_those_of_the_plain_loop(name: str) -> None:
    ends = {}
    for fused in (True, False):
        model = small_model()
        optimizer = optim.build_optimizer(model, OptimConfig(optim=name, learning_rate=0.01, weight_decay=0.1))
        assert all(group["fused"] for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group.update(fused=fused, foreach=False)
        for _ in range(5):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        ends[fused] = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(ends[True], ends[False], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adagrad", "adadelta", "lion", "muon", "galore"])
def test_weight_decay_is_decoupled(name: str) -> None:
    needed(name)
    model = nn.Linear(2, 2, bias=False)
    before = model.weight.detach().clone()
    optimizer = optim.build_optimizer(model, OptimConfig(optim=name, learning_rate=0.1, weight_decay=0.5))
    model.weight.grad = torch.zeros(2, 2)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before * (1 - 0.1 * 0.5))


def test_scale_and_clip() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([30.0, 0.0]), torch.tensor([40.0])
    assert optim.scale_and_clip(parameters, factor=0.1, max_norm=0.0) == pytest.approx(5.0)
    assert parameters[1].grad.item() == pytest.approx(4.0)
    assert optim.scale_and_clip(parameters, factor=1.0, max_norm=1.0) == pytest.approx(5.0)
    assert parameters[0].grad.tolist() == pytest.approx([0.6, 0.0])


def test_nothing_trainable_is_an_error() -> None:
    with pytest.raises(ConfigError, match="At least one parameter must be trainable"):
        optim.build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


def test_fusedadam_falls_back_to_torch_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log, "_said", set())
    monkeypatch.setattr(log.logger, "propagate", True)
    with caplog.at_level("INFO"):
        optimizers = [optim.build_optimizer(nn.Linear(2, 2), OptimConfig(optim="fusedadam")) for _ in range(2)]
    assert all(type(o) is torch.optim.AdamW and o.defaults["fused"] for o in optimizers)
    assert caplog.text.count("torch's fused AdamW is used instead") == 1


def test_the_wrong_apex_is_noticed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(log, "_said", set())
    monkeypatch.setattr(log.logger, "propagate", True)
    impostor = types.ModuleType("apex")
    impostor.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "apex", impostor)
    with caplog.at_level("INFO"):
        optim.build_optimizer(nn.Linear(2, 2), OptimConfig(optim="fusedadam"))
    assert "is not NVIDIA's" in caplog.text


def test_a_missing_package_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(
        UnsupportedError, match=r"adamw8bit needs the package 'bitsandbytes'.*\n.*pip install bitsandbytes"
    ):
        optim.build_optimizer(nn.Linear(2, 2), OptimConfig(optim="adamw8bit"))
