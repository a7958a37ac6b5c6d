"""gpt-oss against `transformers`, beyond `test_families` and `test_moe`: MXFP4, 16 bits, config.json, packed rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from parity.test_converters_hf import IDS, save_model
from parity.test_families import ENDS, MODELS
from safetensors.torch import load_file, save_file
from torch import Tensor

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface.families.mixtures.gpt_oss import GPT_OSS
from onmt_llm.checkpoint.formats.huggingface.mxfp4 import decoded
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.load import load_model

transformers = pytest.importorskip("transformers")

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


def test_config_json_comes_back(tmp_path: Path) -> None:
    rope = {**SETTINGS["rope_parameters"], "beta_fast": 24.0, "beta_slow": 2.0}
    theirs = save_model(tmp_path / "hf", "gpt_oss", {**SETTINGS, "rope_parameters": rope})
    convert(tmp_path / "hf", tmp_path / "ours")
    export_hf(tmp_path / "ours", tmp_path / "back")
    back = transformers.AutoConfig.from_pretrained(tmp_path / "back")
    assert {**back.to_dict(), "_name_or_path": ""} == theirs.config.to_dict()


def test_the_defaults_of_config_json() -> None:
    sizes = {"num_hidden_layers": 3, "vocab_size": 300, "hidden_size": 128, "intermediate_size": 48}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    stated = transformers.GptOssConfig(**sizes).to_dict()
    assert GPT_OSS.to_model({"model_type": "gpt_oss", **sizes}) == GPT_OSS.to_model(stated, ignore_unknown=True)


@torch.no_grad()
def test_documents_in_one_row(tmp_path: Path) -> None:
    theirs = save_model(tmp_path / "hf", "gpt_oss", SETTINGS)
    model = load_model(convert(tmp_path / "hf", tmp_path / "ours"))
    parts = IDS.split([7, IDS.shape[1] - 7], dim=1)
    doc = torch.cat([torch.full_like(part, number) for number, part in enumerate(parts, 1)], dim=1)
    expected = torch.cat([theirs(part).logits for part in parts], dim=1)
    assert (model(IDS, doc_BT=doc) - expected).abs().max() <= 1e-5
