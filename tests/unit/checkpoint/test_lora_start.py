"""Adapters initialised from the weights (PiSSA, LoftQ): the stored adapter rebuilds exactly the same layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onmt_llm.checkpoint.load import Placement, build_model, load_model
from onmt_llm.checkpoint.merge import merge_lora
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.checkpoint import AdapterSpec
from onmt_llm.nn.lora.model import lora_modules, lora_state
from onmt_llm.nn.transformer import Transformer

IDS = torch.tensor([[1, 5, 7, 9, 3]])
LAYERS = ["q_proj", "down_proj"]
Make = Callable[..., Checkpoint]


def spec(base: Checkpoint, **settings: object) -> AdapterSpec:
    shared = {"rank": 3, "alpha": 2.0, "layers": LAYERS, "base": str(base.path), "base_fingerprint": base.fingerprint}
    return AdapterSpec.model_validate({**shared, **settings})


def save(model: Transformer, base: Checkpoint, adapter: AdapterSpec, path: Path) -> Checkpoint:
    config = base.config.model_copy(update={"adapter": adapter})
    with CheckpointWriter(path, config) as writer:
        for name, tensor in lora_state(model).items():
            writer.add(name, tensor)
        writer.add_file(base.path / "vocab.txt", "vocab.txt")
    return Checkpoint.open(path)


def train_a_little(model: Transformer) -> None:
    for module in lora_modules(model).values():
        for tensor in module.parameters(recurse=False):
            tensor.data.add_(0.1 * torch.randn_like(tensor))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("steps", [None, 8])
@torch.no_grad()
def test_pissa_computes_what_the_base_does_and_merges_into_it(
    tmp_path: Path, make_model: Make, dora: bool, steps: int | None
) -> None:
    torch.manual_seed(0)
    base = make_model()
    adapter = spec(base, init="pissa", init_iter=steps, dora=dora, rank_pattern={"down_proj": 5})
    model = build_model(base, addition=adapter).eval()
    plain = load_model(base.path)
    torch.testing.assert_close(model(IDS), plain(IDS), atol=1e-4, rtol=1e-4)
    path = "decoder.layers.0.self_attn.q_proj"
    module, weight = model.get_submodule(path), plain.get_submodule(path).weight
    largest = torch.linalg.svdvals(weight)
    torch.testing.assert_close(
        torch.linalg.svdvals(module.base.weight)[0], largest[3], rtol=1e-4 if steps is None else 0.1, atol=0
    )
    train_a_little(model)
    saved = save(model, base, adapter, tmp_path / "adapter")
    assert (model(IDS) - plain(IDS)).abs().max() > 0.1
    assert torch.equal(load_model(saved.path)(IDS), model(IDS))
    merge_lora(base.path, saved.path, tmp_path / "merged")
    torch.testing.assert_close(load_model(tmp_path / "merged")(IDS), model(IDS), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("iterations", [None, 4])
@pytest.mark.parametrize("quant_type", ["int8", "bnb_NF4"])
@torch.no_grad()
def test_loftq_makes_up_for_what_quantisation_loses(
    tmp_path: Path, make_model: Make, quant_type: str, iterations: int | None
) -> None:
    if quant_type != "int8":
        pytest.importorskip("bitsandbytes")
    base = make_model()
    quantised = {"quant_layers": LAYERS, "quant_type": quant_type}
    placement = Placement(**quantised)
    without = build_model(base, placement, addition=spec(base))
    adapter = spec(base, init="loftq", init_iter=iterations, **quantised)
    model = build_model(base, placement, addition=adapter).eval()
    plain = load_model(base.path)
    errors = {
        which: {path: plain.get_submodule(path).weight - m.merged_weight() for path, m in lora_modules(built).items()}
        for which, built in (("without", without), ("with", model))
    }
    lost = {which: sum(error.norm() for error in own.values()) for which, own in errors.items()}
    # the errors of rounding have hardly a structure; a rank of 3 in 16 takes a third of them
    assert lost["with"] < 0.8 * lost["without"]
    train_a_little(model)
    saved = save(model, base, adapter, tmp_path / "adapter")
    again = build_model(base, placement, addition=adapter, weights=saved).eval()
    assert torch.equal(again(IDS), model(IDS))
    # without quantisation, as when it is merged: what is still lost comes back, and nothing else changes
    whole = load_model(saved.path)
    for path, module in lora_modules(model).items():
        difference = whole.get_submodule(path).merged_weight() - module.merged_weight()
        torch.testing.assert_close(difference, errors["with"][path], atol=1e-5, rtol=0)
    merge_lora(base.path, saved.path, tmp_path / "merged")
    torch.testing.assert_close(load_model(tmp_path / "merged")(IDS), whole(IDS), atol=1e-3, rtol=1e-3)
