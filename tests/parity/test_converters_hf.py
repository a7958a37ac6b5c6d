"""Converted Hugging Face models compute what `transformers` computes; exported again, they are the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import CheckpointError, UnsupportedError

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

VOCAB = 300
IDS = torch.tensor([[1, 5, 290, 17, 44, 3, 120, 8, 250, 99, 31, 7]])
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCAB}
LLAMA = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
FALCON = {**SIZES, "layer_norm_epsilon": 1e-4}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "llama_grouped": ("llama", {**LLAMA, "num_key_value_heads": 2, "rms_norm_eps": 1e-4}),
    "llama_tied": ("llama", {**LLAMA, "tie_word_embeddings": True, "head_dim": 16}),
    "llama3_scaling": ("llama", {**LLAMA, "rope_parameters": LLAMA3}),
    "llama_biases": ("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**LLAMA, "num_key_value_heads": 2, "sliding_window": 4}),
    "qwen2": ("qwen2", {**LLAMA, "num_key_value_heads": 2}),
    "falcon_7b": ("falcon", {**FALCON, "tie_word_embeddings": True}),
    "falcon_40b": (
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False},
    ),
    "falcon_11b": (
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon_rw": ("falcon", {**FALCON, "alibi": True, "bias": True, "parallel_attn": False, "multi_query": False}),
}


def save_tokenizer(directory: Path) -> None:
    """A byte-level BPE without merges: 3 special tokens, 256 bytes; the model has more rows."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}, "unk_token": "<unk>"}
    template = (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
        " + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    (directory / "tokenizer_config.json").write_text(json.dumps({**names, "chat_template": template}))


def save_model(directory: Path, kind: str, settings: dict[str, Any], **options: Any) -> Any:
    """A model of transformers with random weights, norms and biases included, saved to `directory`."""
    torch.manual_seed(0)
    # Attention is torch's own (sdpa, the default): the eager code of Falcon in transformers 5 counts ALiBi twice.
    config = transformers.AutoConfig.for_model(kind, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory, **options)
    save_tokenizer(directory)
    return model


def change_config(directory: Path, change: dict[str, Any]) -> None:
    """Set keys of config.json, or remove those that are set to None."""
    file = directory / "config.json"
    changed = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


@torch.no_grad()
def distance(ours: Path, theirs: Any) -> float:
    return float((load_model(ours)(IDS) - theirs(IDS).logits).abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_the_way_back(tmp_path: Path, name: str) -> None:
    kind, settings = MODELS[name]
    theirs = save_model(tmp_path / "hf", kind, settings)
    convert(tmp_path / "hf", tmp_path / "ours", shard_size="20KB")
    assert distance(tmp_path / "ours", theirs) <= 1e-4
    export_hf(tmp_path / "ours", tmp_path / "back", shard_size="20KB")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert back.config.model_type == kind
    there, here = theirs.state_dict(), back.state_dict()
    assert there.keys() == here.keys()
    assert all(torch.equal(there[key], here[key]) for key in there)
    with torch.no_grad():
        assert torch.equal(back(IDS).logits, theirs(IDS).logits)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rms_norm_eps": float("nan")}, "norm_eps"),
        ({"rms_norm_eps": -1}, "norm_eps"),
        ({"eos_token_id": 99999}, "eos_token_id must be the id of one of the model's 300 tokens, but is 99999"),
        ({"eos_token_id": [2, -5]}, "but is -5"),
    ],
)
def test_nonsense_in_config_json_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    save_model(tmp_path / "hf", *MODELS["llama"])
    file = tmp_path / "hf/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    (tmp_path / "hf/generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=sentence):
        convert(tmp_path / "hf", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    theirs = save_model(tmp_path / "hf", *MODELS["llama"])
    with torch.no_grad():
        theirs.model.layers[1].mlp.up_proj.weight[3, 4] = 1e38
    theirs.save_pretrained(tmp_path / "hf")
    with pytest.raises(CheckpointError, match=r"must be finite numbers, but .*layers\.1"):
        convert(tmp_path / "hf", tmp_path / "ours", dtype="fp16")
    convert(tmp_path / "hf", tmp_path / "ours", dtype="bf16")


@pytest.mark.parametrize(
    ("layers", "window"),
    [*(({"max_window_layers": first}, size) for first, size in ((0, 4), (1, 4), (2, None))), ({}, None), (None, None)],
)
def test_qwen2_windows_without_layer_types(tmp_path: Path, layers: dict[str, int] | None, window: int | None) -> None:
    """As older versions of transformers wrote them: the first `max_window_layers` layers, 28 by default, have none."""
    settings = {
        "num_key_value_heads": 2,
        "sliding_window": 4,
        **({} if layers is None else {"use_sliding_window": True, **layers}),
    }
    theirs = save_model(tmp_path / "hf", "qwen2", {**LLAMA, **settings})
    change_config(tmp_path / "hf", {"layer_types": None, "max_window_layers": None, **settings})
    convert(tmp_path / "hf", tmp_path / "ours")
    assert Checkpoint.open(tmp_path / "ours").config.model.sliding_window == window
    assert distance(tmp_path / "ours", theirs) <= 1e-5


@pytest.mark.parametrize(
    ("kind", "new", "old"),
    [
        ("gemma3_text", {}, {"sliding_window_pattern": 3, "rope_theta": 900.0, "rope_local_base_freq": 50.0}),
        ("gemma3_text", {}, {"sliding_window_pattern": 2, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ("cohere2", {"logit_scale": 0.9}, {"sliding_window_pattern": 3, "rope_theta": 900.0}),
        ("smollm3", {}, {"no_rope_layer_interval": 3, "rope_theta": 900.0}),
    ],
)
def test_older_keys_of_layers_that_differ(tmp_path: Path, kind: str, new: dict[str, Any], old: dict[str, Any]) -> None:
    """As in the published files: no list of layers, and a base of each rotary table instead of `rope_parameters`."""
    settings = {**LLAMA, **new, "num_hidden_layers": 3, "num_key_value_heads": 2, "sliding_window": 4}
    settings |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    theirs = save_model(tmp_path / "hf", kind, {**settings, **old})
    gone = ("layer_types", "no_rope_layers", "no_rope_layer_interval", "rope_parameters", "_sliding_window_pattern")
    change_config(tmp_path / "hf", {**dict.fromkeys(gone), **old})
    convert(tmp_path / "hf", tmp_path / "ours")
    assert distance(tmp_path / "ours", theirs) <= 1e-5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"layer_types": ["sliding_attention"]}, "num_hidden_layers = 2 entries, but has 1"),
        ({"layer_types": ["chunked_attention", "full_attention"]}, "but there is also chunked_attention"),
        ({"sliding_window": None}, "sliding_window .* must be set, since 2 layers"),
        ({"query_pre_attn_scalar": 0}, "attention_scale"),
        (
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "sliding_attention must be",
        ),
        ({"model_type": "gemma3", "text_config": {}, "vision_config": {"model_type": "siglip"}}, "read text only"),
    ],
)
def test_what_gemma3_must_be(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    save_model(tmp_path / "hf", "gemma3_text", {**LLAMA, "num_key_value_heads": 2})
    file = tmp_path / "hf/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises((CheckpointError, UnsupportedError), match=sentence):
        convert(tmp_path / "hf", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_old_falcon_keys(tmp_path: Path) -> None:
    theirs = save_model(tmp_path / "hf", *MODELS["falcon_40b"])
    file = tmp_path / "hf/config.json"
    config = json.loads(file.read_text())
    old = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "num_kv_heads": "n_head_kv"}
    config = {
        old.get(key, key): value for key, value in config.items() if key not in ("rope_parameters", "ffn_hidden_size")
    }
    file.write_text(json.dumps(config))
    convert(tmp_path / "hf", tmp_path / "ours", source="falcon")
    assert Checkpoint.open(tmp_path / "ours").config.model.norm_eps == 1e-4
    assert distance(tmp_path / "ours", theirs) <= 1e-4


def test_old_llama_keys(tmp_path: Path) -> None:
    theirs = save_model(tmp_path / "hf", *MODELS["llama3_scaling"])
    file = tmp_path / "hf/config.json"
    config = json.loads(file.read_text())
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    file.write_text(json.dumps(config))
    convert(tmp_path / "hf", tmp_path / "ours")
    assert distance(tmp_path / "ours", theirs) <= 1e-4


def test_shards_and_pytorch_files(tmp_path: Path) -> None:
    theirs = save_model(tmp_path / "hf", *MODELS["llama"], max_shard_size="30KB")
    convert(tmp_path / "hf", tmp_path / "ours")
    state = theirs.state_dict()
    half = len(state) // 2
    parts = {
        "pytorch_model-1.bin": dict(list(state.items())[:half]),
        "pytorch_model-2.bin": dict(list(state.items())[half:]),
    }
    for file in (tmp_path / "hf").glob("model*safetensors*"):
        file.unlink()
    for name, part in parts.items():
        torch.save(part, tmp_path / "hf" / name)
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    (tmp_path / "hf/pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert(tmp_path / "hf", tmp_path / "again")
    assert Checkpoint.open(tmp_path / "ours").fingerprint == Checkpoint.open(tmp_path / "again").fingerprint


def test_text_side(tmp_path: Path) -> None:
    save_model(tmp_path / "hf", *MODELS["llama"])
    (tmp_path / "hf/generation_config.json").write_text(json.dumps({"eos_token_id": [2, 40]}))
    convert(tmp_path / "hf", tmp_path / "ours")
    checkpoint = Checkpoint.open(tmp_path / "ours")
    codec, specials = checkpoint.codec(), checkpoint.config.specials
    assert (specials.bos, specials.eos, specials.unk, specials.pad, specials.add_bos) == (
        "<s>",
        "</s>",
        "<unk>",
        None,
        True,
    )
    assert len(codec.vocab) == VOCAB and codec.vocab[299] == "<|unused_299|>"
    assert checkpoint.config.stop_tokens == [codec.vocab[40]]
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "Zwölf\nBoxkämpfer 123"
    assert codec.vocab.ids(codec.encode(text)) == reference(text)["input_ids"]
    export_hf(checkpoint, tmp_path / "back")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert again(text)["input_ids"] == reference(text)["input_ids"]
    assert again.eos_token == "</s>"
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "back").eos_token_id == [2, 40]


def test_the_plain_chatml_template_is_known_by_name(tmp_path: Path) -> None:
    save_model(tmp_path / "hf", *MODELS["llama"])
    file = tmp_path / "hf/tokenizer.json"
    content = json.loads(file.read_text())
    marks = [
        {**content["added_tokens"][0], "id": 259 + i, "content": mark}
        for i, mark in enumerate(("<|im_start|>", "<|im_end|>"))
    ]
    content["added_tokens"] += marks
    file.write_text(json.dumps(content))
    convert(tmp_path / "hf", tmp_path / "ours")
    config = Checkpoint.open(tmp_path / "ours").config
    assert config.template == "chatml" and config.stop_tokens == ["<|im_end|>"]
    settings = json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    (tmp_path / "hf/chat_template.jinja").write_text("Q: {{ messages[0]['content'] }}" + settings["chat_template"])
    convert(tmp_path / "hf", tmp_path / "other")
    assert Checkpoint.open(tmp_path / "other").config.template == "chat_template.jinja"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_are_kept_unless_another_is_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    model = save_model(tmp_path / "hf", *MODELS["llama"]).to(dtype)
    model.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "same")
    convert(tmp_path / "hf", tmp_path / "full", dtype="fp32")
    same, full = Checkpoint.open(tmp_path / "same"), Checkpoint.open(tmp_path / "full")
    assert {same.dtype(name) for name in same.names()} == {dtype} and full.config.model.dtype == "fp32"
    assert same.config.model.dtype == ("bf16" if dtype == torch.bfloat16 else "fp16")
    assert all(torch.equal(same.tensor(name).float(), full.tensor(name)) for name in same.names())


def test_what_cannot_be_computed_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "hf", *MODELS["llama"])
    file = tmp_path / "hf/config.json"
    good = json.loads(file.read_text())
    for change, part in (
        ({"model_type": "mamba"}, "mamba"),
        ({"rope_parameters": {"rope_type": "ntk", "factor": 2.0, "rope_theta": 1e4}}, "ntk"),
        ({"hidden_act": "tanh"}, "tanh"),
        ({"rope_interleaved": True}, "rope_interleaved in config.json must be false, but is true"),
        ({"attn_logit_softcapping": 50.0, "altup": {}}, "also altup, attn_logit_softcapping"),
    ):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(UnsupportedError, match=part):
            convert(tmp_path / "hf", tmp_path / "ours")
    file.write_text(json.dumps({**good, "num_hidden_layers": 3, "intermediate_size": 40}))
    with pytest.raises(CheckpointError, match=r"(?s)missing: model\.layers\.2.*wrong shape: .*up_proj"):
        convert(tmp_path / "hf", tmp_path / "ours")
    for change, part in (
        ({"num_attention_heads": 5, "head_dim": None}, "multiple of kv_heads"),
        ({"num_attention_heads": "many"}, "wrong type"),
    ):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(CheckpointError, match=part):
            convert(tmp_path / "hf", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_model_that_no_family_expresses_is_not_exported(tmp_path: Path) -> None:
    save_model(tmp_path / "hf", *MODELS["llama"])
    convert(tmp_path / "hf", tmp_path / "ours")
    checkpoint = Checkpoint.open(tmp_path / "ours")
    model = checkpoint.config.model.model_copy(update={"position": "shaw", "relative_positions": 4})
    checkpoint.config = checkpoint.config.model_copy(update={"model": model})
    with pytest.raises(UnsupportedError, match="position is shaw"):
        export_hf(checkpoint, tmp_path / "back")
