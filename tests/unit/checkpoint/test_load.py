"""Loading weights into a model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onmt_llm.checkpoint.load import Placement, build_model, load_adapter, load_model
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.errors import CheckpointError, ConfigError

IDS = torch.tensor([[1, 5, 7, 9, 3]])
Make = Callable[..., Checkpoint]


@torch.no_grad()
def logits(path: Path, **options: object) -> torch.Tensor:
    return load_model(path, **options)(IDS)  # type: ignore[arg-type]


def test_load_in_another_type(make_model: Make) -> None:
    model = load_model(make_model().path, dtype="bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16} and not model.training
    with pytest.raises(CheckpointError, match="fp32, bf16, fp16"):
        load_model(make_model("again").path, dtype="fp8")


def test_build_quantises_and_adds_a_fresh_adapter(make_model: Make, make_adapter: Make) -> None:
    base = make_model()
    adapter = make_adapter(base)
    model = build_model(base, Placement(quant_layers=["up_proj"], quant_type="int8"), addition=adapter.config.adapter)
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"Int8Linear", "LoRALinear"} <= kinds
    quantised = model.eval()(IDS)
    assert 0 < (quantised - logits(base.path)).abs().max() < 0.5
    load_adapter(model, adapter)
    assert (model(IDS) - quantised).abs().max() > 0.1
    with pytest.raises(ConfigError, match="up_prj"):
        build_model(base, Placement(quant_layers=["up_prj"], quant_type="int8"))


def test_an_adapter_finds_its_base_and_refuses_another(tmp_path: Path, make_model: Make, make_adapter: Make) -> None:
    base = make_model()
    adapter = make_adapter(base)
    base.path.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="no checkpoint is there"):
        load_model(adapter.path)
    make_model("base", seed=5)
    with pytest.raises(CheckpointError, match="was trained on"):
        load_model(adapter.path)


def test_an_adapter_finds_the_base_that_was_moved_with_it(tmp_path: Path, make_model: Make, make_adapter: Make) -> None:
    base = make_model()
    adapter = make_adapter(base)
    expected = logits(adapter.path)
    moved = tmp_path / "moved" / "run" / "adapter"
    moved.parent.mkdir(parents=True)
    adapter.path.rename(moved)
    base.path.rename(tmp_path / "moved" / "base")
    assert torch.equal(logits(moved), expected)
    (tmp_path / "moved" / "base").rename(tmp_path / "elsewhere")
    shutil.copytree(make_model("another", seed=5).path, tmp_path / "moved" / "base")
    with pytest.raises(CheckpointError, match="was trained on"):
        load_model(moved)


def test_tensors_that_do_not_fit_the_config_are_all_listed(tmp_path: Path, make_model: Make) -> None:
    base = make_model()
    with CheckpointWriter(tmp_path / "odd", base.config) as writer:
        for name in base.names()[2:]:
            writer.add(name, base.tensor(name)[:1] if name.endswith("norm.weight") else base.tensor(name))
        writer.add("extra", torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"(?s)missing: .*not used: extra.*wrong shape: decoder\.norm\.weight"):
        load_model(tmp_path / "odd")
