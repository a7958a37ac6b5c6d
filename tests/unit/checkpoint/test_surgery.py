from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onmt_llm.checkpoint.load import build_model, load_adapter, load_model
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.checkpoint.surgery import average, concat_lora, extract_vocabulary, merge_lora
from onmt_llm.errors import CheckpointError, ConfigError

IDS = torch.tensor([[1, 5, 7, 9, 3]])
Make = Callable[..., Checkpoint]


@torch.no_grad()
def logits(path: Path, **options: object) -> torch.Tensor:
    return load_model(path, **options)(IDS)  # type: ignore[arg-type]


@pytest.mark.parametrize("embedding", [False, True])
def test_merged_is_unmerged(tmp_path: Path, make_model: Make, make_adapter: Make, embedding: bool) -> None:
    base = make_model()
    adapter = make_adapter(base, embedding=embedding)
    merge_lora(base.path, adapter.path, tmp_path / "merged")
    merged = Checkpoint.open(tmp_path / "merged")
    assert merged.config.adapter is None and merged.config.template == "alpaca"
    assert merged.names() == base.names()
    assert [file.name for file in merged.files()] == ["vocab.txt"]
    plain, adapted = logits(base.path), logits(adapter.path)
    assert (plain - adapted).abs().max() > 0.1
    torch.testing.assert_close(logits(merged.path), adapted, atol=1e-4, rtol=1e-4)


def test_concat_holds_both_and_computes_the_same(tmp_path: Path, make_model: Make, make_adapter: Make) -> None:
    base = make_model()
    adapter = make_adapter(base)
    concat_lora(base.path, adapter.path, tmp_path / "step_4000.concat.pt")
    both = Checkpoint.open(tmp_path / "step_4000.concat")
    assert both.has_adapter and not both.is_adapter
    assert both.names() == base.names() + adapter.names()
    assert both.fingerprint == base.fingerprint
    assert torch.equal(logits(both.path), logits(adapter.path))
    merge_lora(base.path, both.path, tmp_path / "merged")
    torch.testing.assert_close(logits(tmp_path / "merged"), logits(both.path), atol=1e-4, rtol=1e-4)


def test_another_base_is_refused_and_both_are_named(tmp_path: Path, make_model: Make, make_adapter: Make) -> None:
    adapter = make_adapter(make_model())
    other = make_model("other", seed=3)
    with pytest.raises(CheckpointError) as caught:
        merge_lora(other.path, adapter.path, tmp_path / "merged")
    assert "other" in str(caught.value) and "base" in str(caught.value)
    assert other.fingerprint[:16] in str(caught.value) and not (tmp_path / "merged").exists()


def test_swapped_arguments_are_said(tmp_path: Path, make_model: Make, make_adapter: Make) -> None:
    base = make_model()
    adapter = make_adapter(base)
    with pytest.raises(CheckpointError, match="swapped"):
        merge_lora(adapter.path, base.path, tmp_path / "merged")
    with pytest.raises(CheckpointError, match="must be an adapter"):
        merge_lora(base.path, base.path, tmp_path / "merged")


def test_layers_that_do_not_fit_are_all_listed(tmp_path: Path, make_model: Make, make_adapter: Make) -> None:
    base = make_model()
    with CheckpointWriter(tmp_path / "odd", make_adapter(base).config) as writer:
        writer.add("decoder.layers.0.self_attn.q_proj.lora_a", torch.zeros(2, 15))
        writer.add("decoder.layers.0.self_attn.q_proj.lora_b", torch.zeros(16, 2))
        writer.add("decoder.layers.9.self_attn.q_proj.lora_a", torch.zeros(2, 16))
    with pytest.raises(CheckpointError, match=r"layers\.0.*\n.*layers\.9"):
        merge_lora(base.path, tmp_path / "odd", tmp_path / "merged")


def test_merging_ignores_quantised_training(tmp_path: Path, make_model: Make, make_adapter: Make) -> None:
    """Layers that were 8-bit while the adapter was trained keep the base's full precision."""
    base = make_model()
    adapter = make_adapter(base)
    spec = adapter.config.adapter
    assert spec is not None
    spec = spec.model_copy(update={"quant_layers": ["up_proj"], "quant_type": "int8"})
    with CheckpointWriter(tmp_path / "eight", adapter.config.model_copy(update={"adapter": spec})) as writer:
        for name, tensor in adapter.tensors():
            writer.add(name, tensor)
        writer.add_file(base.path / "vocab.txt", "vocab.txt")
    merge_lora(base.path, tmp_path / "eight", tmp_path / "merged")
    name = "decoder.layers.0.mlp.up_proj.weight"
    assert torch.equal(Checkpoint.open(tmp_path / "merged").tensor(name), base.tensor(name))


def test_average_is_the_mean(tmp_path: Path, make_model: Make) -> None:
    one, two = make_model("one", seed=1), make_model("two", seed=2)
    average([one.path, two.path], tmp_path / "mean")
    mean = Checkpoint.open(tmp_path / "mean")
    for name in one.names():
        torch.testing.assert_close(mean.tensor(name), (one.tensor(name) + two.tensor(name)) / 2)


def test_extract_vocabulary(tmp_path: Path, make_model: Make) -> None:
    assert extract_vocabulary(make_model().path, tmp_path / "out/vocab.txt", side="src") == 20
    assert (tmp_path / "out/vocab.txt").read_text().splitlines()[:4] == ["<unk>", "<s>", "</s>", "t0"]


def test_load_in_another_type(make_model: Make) -> None:
    model = load_model(make_model().path, dtype="bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16} and not model.training
    with pytest.raises(CheckpointError, match="fp32, bf16, fp16"):
        load_model(make_model("again").path, dtype="fp8")


def test_build_quantises_and_adds_a_fresh_adapter(make_model: Make, make_adapter: Make) -> None:
    base = make_model()
    adapter = make_adapter(base)
    model = build_model(base, quant_layers=["up_proj"], quant_type="int8", lora=adapter.config.adapter)
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"Int8Linear", "LoRALinear"} <= kinds
    quantised = model.eval()(IDS)
    assert 0 < (quantised - logits(base.path)).abs().max() < 0.5
    load_adapter(model, adapter)
    assert (model(IDS) - quantised).abs().max() > 0.1
    with pytest.raises(ConfigError, match="up_prj"):
        build_model(base, quant_layers=["up_prj"], quant_type="int8")


def test_an_adapter_finds_its_base_and_refuses_another(tmp_path: Path, make_model: Make, make_adapter: Make) -> None:
    base = make_model()
    adapter = make_adapter(base)
    base.path.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="no checkpoint is there"):
        load_model(adapter.path)
    make_model("base", seed=5)
    with pytest.raises(CheckpointError, match="was trained on"):
        load_model(adapter.path)


def test_tensors_that_do_not_fit_the_config_are_all_listed(tmp_path: Path, make_model: Make) -> None:
    base = make_model()
    with CheckpointWriter(tmp_path / "odd", base.config) as writer:
        for name in base.names()[2:]:
            writer.add(name, base.tensor(name)[:1] if name.endswith("norm.weight") else base.tensor(name))
        writer.add("extra", torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"(?s)missing: .*not used: extra.*wrong shape: decoder\.norm\.weight"):
        load_model(tmp_path / "odd")
