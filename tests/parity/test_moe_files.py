"""gpt-oss and DeepSeek against `transformers`, beyond `test_families` and `test_moe`: MXFP4, config.json, packing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.test_converters_hf import IDS, save_model
from parity.test_families import ENDS, MODELS
from safetensors.torch import load_file, save_file
from torch import Tensor

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface.mxfp4 import decoded
from onmt_llm.checkpoint.formats.huggingface.read import family_of
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.load import load_model

transformers = pytest.importorskip("transformers")

YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 8}
YARN |= {"beta_fast": 24.0, "beta_slow": 2.0, "truncate": False, "attention_factor": 1.1}
ROUND_TRIPS: dict[str, dict[str, Any]] = {
    "gpt_oss": {"rope_parameters": YARN},
    "deepseek_v2": {"n_group": 1, "topk_group": 1},
    "deepseek_v2 groups, yarn, no narrow queries": {"rope_parameters": {**YARN, "mscale_all_dim": 1.1}},
    "deepseek_v3": {"rope_parameters": {**YARN, "mscale_all_dim": 0.707}},
}
"""Models, with changes: all settings of their rotary positions are stated."""
SETTINGS = {**MODELS["gpt_oss"][1], **ENDS}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens"]}


def reference(blocks: Tensor, scales: Tensor) -> Tensor:
    """What transformers makes of the experts of a layer, (E, I, O)."""
    module = pytest.importorskip("transformers.integrations.mxfp4")
    return module.convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)


def test_every_code_and_scale() -> None:
    """All codes with all exponents, also those that bfloat16 cannot hold."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(256, -1, -1).contiguous()
    scales = torch.arange(256, dtype=torch.uint8)[:, None].expand(-1, 16).contiguous()
    found = decoded(blocks, scales)
    expected = reference(blocks[None], scales[None])[0].T
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert found.unique().numel() > 1000


@torch.no_grad()
def test_files_in_mxfp4(tmp_path: Path) -> None:
    """As OpenAI publishes them: the experts in four bits, all else in bfloat16, with older keys in config.json."""
    torch.manual_seed(0)
    hf = tmp_path / "hf"
    theirs = save_model(hf, "gpt_oss", {**SETTINGS, "hidden_size": 64, "intermediate_size": 32}).bfloat16()
    stored: dict[str, Tensor] = {}
    for name, tensor in theirs.state_dict().items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inputs, outputs = tensor.shape
            blocks = torch.randint(256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
            scales = torch.randint(121, 126, (experts, outputs, inputs // 32), dtype=torch.uint8)
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            tensor.copy_(reference(blocks, scales))
        else:
            stored[name] = tensor.contiguous()
    save_file(stored, hf / "model.safetensors")
    config = json.loads((hf / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "quantization_config": MXFP4}
    config |= {"torch_dtype": "bfloat16", "initial_context_length": 8, "experts_per_token": 3}
    (hf / "config.json").write_text(json.dumps(config))

    convert(hf, tmp_path / "ours")
    export_hf(tmp_path / "ours", tmp_path / "back")
    back = load_file(tmp_path / "back/model.safetensors")
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, back[name]) for name, tensor in theirs.state_dict().items())
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
    expected = again(IDS).logits
    assert expected.std() > 0.1
    assert (load_model(tmp_path / "ours", dtype="fp32")(IDS) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_config_json_comes_back(tmp_path: Path, name: str) -> None:
    kind, settings = MODELS[name]
    theirs = save_model(tmp_path / "hf", kind, {**settings, **ENDS, **ROUND_TRIPS[name]})
    convert(tmp_path / "hf", tmp_path / "ours")
    export_hf(tmp_path / "ours", tmp_path / "back")
    back = transformers.AutoConfig.from_pretrained(tmp_path / "back").to_dict()
    expected = {**theirs.config.to_dict(), "_name_or_path": str(tmp_path / "back")}
    assert {key: back[key] for key in expected} == expected
    extra = {key: value for key, value in back.items() if key not in expected}
    assert extra.keys() <= {"moe_layer_freq", "scoring_func", "topk_method"}


@pytest.mark.parametrize("kind", ["gpt_oss", "deepseek_v2", "deepseek_v3"])
def test_the_defaults_of_config_json(kind: str) -> None:
    sizes = {"num_hidden_layers": 4, "vocab_size": 300, "hidden_size": 128, "intermediate_size": 48}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2 if kind == "gpt_oss" else 4}
    if kind == "deepseek_v2":
        sizes["num_experts_per_tok"] = 6
    stated = transformers.AutoConfig.for_model(kind, **sizes).to_dict()
    family = family_of({"model_type": kind})
    assert family.to_model(sizes) == family.to_model(stated, ignore_unknown=True)


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v2", "deepseek_v3"])
@torch.no_grad()
def test_documents_in_one_row(tmp_path: Path, name: str) -> None:
    kind, settings = MODELS[name]
    theirs = save_model(tmp_path / "hf", kind, {**settings, **ENDS})
    model = load_model(convert(tmp_path / "hf", tmp_path / "ours"))
    parts = IDS.split([7, IDS.shape[1] - 7], dim=1)
    doc = torch.cat([torch.full_like(part, number) for number, part in enumerate(parts, 1)], dim=1)
    expected = torch.cat([theirs(part).logits for part in parts], dim=1)
    assert (model(IDS, doc_BT=doc) - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_biases_of_the_choice_stay_in_float32(tmp_path: Path) -> None:
    kind, settings = MODELS["deepseek_v3"]
    theirs = save_model(tmp_path / "hf", kind, {**settings, **ENDS})
    state = {name: tensor.bfloat16().contiguous() for name, tensor in theirs.state_dict().items()}
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    state |= {key: torch.rand(6) + 8 for key in state if key.endswith("e_score_correction_bias")}
    save_file(state, tmp_path / "hf/model.safetensors")
    convert(tmp_path / "hf", tmp_path / "ours")
    export_hf(tmp_path / "ours", tmp_path / "back")
    back = load_file(tmp_path / "back/model.safetensors")
    assert torch.equal(back[name], state[name]) and back["model.norm.weight"].dtype == torch.bfloat16
    assert torch.equal(load_model(tmp_path / "ours").decoder.layers[1].mlp.selection.bias, state[name])
