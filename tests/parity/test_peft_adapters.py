"""Adapters trained with peft compute the same here, and adapters trained here the same in peft, within 1e-5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.peft.read import import_peft
from onmt_llm.checkpoint.formats.peft.write import export_peft
from onmt_llm.checkpoint.load import build_model, load_model
from onmt_llm.checkpoint.merge import merge_lora
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.cli.lora import main as lora_command
from onmt_llm.config.checkpoint import AdapterSpec
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.nn.lora.model import lora_modules, lora_state

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
tokenizers = pytest.importorskip("tokenizers")

IDS = torch.tensor([[1, 5, 40, 17, 44, 3, 12, 8, 25, 39, 31, 7]])
SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "attention_bias": True}
FALCON = {**SIZES, "new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
KINDS = {
    "llama": LLAMA,
    "falcon": FALCON,
    "phi3": {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": None},
    "mixtral": {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "num_local_experts": 4},
    "gpt_oss": {
        **{**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "num_local_experts": 4, "head_dim": 8},
        "sliding_window": 4,
    },
    "deepseek_v2": {
        **{**SIZES, "intermediate_size": 48, "n_routed_experts": 4, "moe_intermediate_size": 24, "v_head_dim": 6},
        **{"kv_lora_rank": 20, "q_lora_rank": 24, "qk_nope_head_dim": 10, "qk_rope_head_dim": 4},
        **{"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    },
    "gpt2": {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "tie_word_embeddings": False},
}
LAYERS = ["q_proj", "k_proj", "o_proj", "down_proj"]


def save_base(folder: Path, kind: str = "llama", **settings: Any) -> Checkpoint:
    """A random model of transformers in `hf`, and converted in `base`."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**KINDS[kind], **ENDS, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder / "hf")
    tokens = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(47))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(tokens, unk_token="<unk>"))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "hf/tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "hf/tokenizer_config.json").write_text(json.dumps(names))
    convert(folder / "hf", folder / "base")
    return Checkpoint.open(folder / "base")


def train_there(folder: Path, **settings: Any) -> torch.Tensor:
    """Train an adapter with peft on `hf`, save it in `peft`; its logits."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf")
    model = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "bias": "none", **settings}))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.02)
    for _ in range(5):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "peft")
    with torch.no_grad():
        return model.eval()(IDS).logits


@torch.no_grad()
def logits_here(path: Path) -> torch.Tensor:
    return load_model(path)(IDS)


@torch.no_grad()
def logits_there(folder: Path, adapter: str) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf")
    return peft.PeftModel.from_pretrained(model, folder / adapter).eval()(IDS).logits


ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {
        "rank_pattern": {"k_proj": 2, r"layers\.1\.mlp\.down_proj": 5},
        "alpha_pattern": {"0.self_attn.q_proj": 3},
        "use_rslora": True,
    },
    "some layers": {"layers_to_transform": [1], "use_dora": True},
    "embedding": {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_dora": True},
}


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_trained_there_computes_the_same_here_and_goes_back(tmp_path: Path, name: str) -> None:
    base = save_base(tmp_path)
    expected = train_there(tmp_path, **{"target_modules": LAYERS, **ADAPTERS[name]})
    assert (logits_here(base.path) - expected).abs().max() > 0.05
    import_peft(tmp_path / "peft", base.path, tmp_path / "ours")
    assert (logits_here(tmp_path / "ours") - expected).abs().max() <= 1e-5
    merge_lora(base.path, tmp_path / "ours", tmp_path / "merged")
    assert (logits_here(tmp_path / "merged") - expected).abs().max() <= 1e-5
    export_peft(tmp_path / "ours", tmp_path / "back")
    assert (logits_there(tmp_path, "back") - expected).abs().max() <= 1e-5
    there, back = (safetensors.load_file(tmp_path / f / "adapter_model.safetensors") for f in ("peft", "back"))
    there = {key: value for key, value in there.items() if "base_layer" not in key}
    assert there.keys() == back.keys()
    assert all(torch.equal(tensor, back[key]) for key, tensor in there.items())


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("falcon", ["query_key_value", "dense"]),
        ("phi3", ["qkv_proj", "gate_up_proj", "down_proj"]),
        ("gpt2", ["c_attn", "c_fc"]),
    ],
)
def test_a_fused_matrix_is_several_layers_here(tmp_path: Path, kind: str, layers: list[str], dora: bool) -> None:
    base = save_base(tmp_path, kind)
    expected = train_there(tmp_path, target_modules=layers, use_dora=dora, use_rslora=not dora)
    import_peft(tmp_path / "peft", base.path, tmp_path / "ours")
    assert (logits_here(tmp_path / "ours") - expected).abs().max() <= 1e-5
    export_peft(tmp_path / "ours", tmp_path / "back")
    assert (logits_there(tmp_path, "back") - expected).abs().max() <= 1e-5
    assert json.loads((tmp_path / "back/adapter_config.json").read_text())["r"] == 4


def train_here(base: Checkpoint, path: Path, **settings: Any) -> Path:
    """An adapter of ours whose tensors have moved from where they begin."""
    torch.manual_seed(2)
    shared = {"rank": 3, "alpha": 6.0, "base": str(base.path), "base_fingerprint": base.fingerprint}
    spec = AdapterSpec.model_validate({**shared, **settings})
    model = build_model(base, addition=spec)
    for module in lora_modules(model).values():
        for tensor in module.parameters(recurse=False):
            tensor.data.add_(0.1 * torch.randn_like(tensor))
    with CheckpointWriter(path, base.config.model_copy(update={"adapter": spec})) as writer:
        for name, tensor in lora_state(model).items():
            writer.add(name, tensor)
    return path


HERE: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"layers": LAYERS}),
    "rslora": ("llama", {"layers": LAYERS, "rslora": True}),
    "dora": ("llama", {"layers": LAYERS, "dora": True}),
    "pissa": ("llama", {"layers": LAYERS, "init": "pissa", "rslora": True, "rank_pattern": {"k_proj": 2}}),
    "pissa and dora": ("llama", {"layers": LAYERS, "init": "pissa", "dora": True}),
    "three a": ("falcon", {"layers": ["q_proj", "k_proj", "v_proj"], "rank_pattern": {"k_proj": 5}}),
    "three a with dora": ("falcon", {"layers": ["q_proj", "k_proj", "v_proj", "o_proj"], "dora": True}),
    "phi3": ("phi3", {"layers": ["q_proj", "gate_proj", "up_proj", "down_proj"]}),
    "gpt2": ("gpt2", {"layers": ["q_proj", "v_proj", "o_proj", "up_proj"]}),
    "experts": ("mixtral", {"layers": ["gate_proj", "up_proj", "down_proj"]}),
    "outputs of experts, router": ("mixtral", {"layers": ["down_proj", "router", "q_proj"], "rslora": True}),
    "sinks": ("gpt_oss", {"layers": ["q_proj", "k_proj", "v_proj", "o_proj"]}),
    "latent": ("deepseek_v2", {"layers": ["q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj", "o_proj"]}),
    "one of three": ("falcon", {"layers": ["v_proj", "up_proj"], "rslora": True}),
}


@pytest.mark.parametrize("name", list(HERE))
def test_trained_here_computes_the_same_there(tmp_path: Path, name: str) -> None:
    kind, settings = HERE[name]
    adapter = train_here(save_base(tmp_path, kind), tmp_path / "ours", **settings)
    expected = logits_here(adapter)
    assert (expected - logits_here(tmp_path / "base")).abs().max() > 0.05
    words = ["-action", "export", "-lora_weights", str(adapter), "-output", str(tmp_path / "peft")]
    assert lora_command(words) == 0
    assert (logits_there(tmp_path, "peft") - expected).abs().max() <= 1e-5
    words = ["-action", "import", "-lora_weights", str(tmp_path / "peft"), "-base_model", str(tmp_path / "base")]
    assert lora_command([*words, "-output", str(tmp_path / "again")]) == 0
    assert (logits_here(tmp_path / "again") - expected).abs().max() <= 1e-5


def test_what_cannot_be_said_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    train_there(tmp_path, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(UnsupportedError, match="modules_to_save"):
        import_peft(tmp_path / "peft", base.path, tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"is a peft adapter.\n.*-action import"):
        load_model(tmp_path / "peft")
    file = tmp_path / "peft/adapter_config.json"
    plain = {**json.loads(file.read_text()), "modules_to_save": None}
    file.write_text(json.dumps({**plain, "init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(UnsupportedError, match="pissa_niter_4 has changed that base"):
        import_peft(tmp_path / "peft", base.path, tmp_path / "ours")
    file.write_text(json.dumps(plain))
    with pytest.raises(CheckpointError, match=r"not a layer of the base: .*lm_head"):
        import_peft(tmp_path / "peft", base.path, tmp_path / "ours")
    adapter = train_here(save_base(tmp_path / "f", "falcon"), tmp_path / "half", layers=["q_proj"], dora=True)
    with pytest.raises(UnsupportedError, match=r"all of .*v_proj must have an adapter"):
        export_peft(adapter, tmp_path / "never")
    adapter = train_here(save_base(tmp_path / "g", "gpt_oss"), tmp_path / "experts", layers=["q_proj", "down_proj"])
    with pytest.raises(UnsupportedError, match=r"none for .*experts\.0\.down_proj and 7 others"):
        export_peft(adapter, tmp_path / "never")
    assert not (tmp_path / "never").exists() and not (tmp_path / "ours").exists()
