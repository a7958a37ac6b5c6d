"""Meta's, Mistral's and torchtune's layouts of a Llama from transformers give the same logits, and ids of text."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tiny
from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.directory import write_manifest
from onmt_llm.checkpoint.formats.params_json.write import export_meta
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import TokenizerSpec, config_text
from onmt_llm.errors import CheckpointError, DataError, UnsupportedError

transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 4, 2, 8, 2
IDS = torch.tensor([[1, 5, 290, 17, 44, 3, 120, 8, 250, 99, 31, 7]])


def sentencepiece_model() -> bytes:
    """A byte-fallback BPE like LLaMA's, learned from a few words."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["below is an instruction that describes a task", "write a response"] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=310,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def tokenizer_model() -> bytes:
    return sentencepiece_model()


def reference(vocab: int, *, width: int = 48, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=HEADS * HEAD_DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=width,
        vocab_size=vocab,
        rms_norm_eps=1e-5,
        **settings,
    )
    model = transformers.LlamaForCausalLM(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def neighbours(weight: torch.Tensor) -> torch.Tensor:
    """Rows of halves (2, d/2) to rows of neighbours (d/2, 2), head by head."""
    return weight.view(-1, 2, HEAD_DIM // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def save_meta(directory: Path, model: Any, *, shards: int, by_row: bool = False, **params: Any) -> None:
    """Write consolidated.NN.pth and params.json."""
    names = {
        "attention.wq": ("self_attn.q_proj", 0),
        "attention.wk": ("self_attn.k_proj", 0),
        "attention.wv": ("self_attn.v_proj", 0),
        "attention.wo": ("self_attn.o_proj", 1),
        "feed_forward.w1": ("mlp.gate_proj", 0),
        "feed_forward.w2": ("mlp.down_proj", 1),
        "feed_forward.w3": ("mlp.up_proj", 0),
        "attention_norm": ("input_layernorm", None),
        "ffn_norm": ("post_attention_layernorm", None),
    }
    table: dict[str, tuple[str, int | None]] = {
        "tok_embeddings.weight": ("model.embed_tokens.weight", 0 if by_row else 1),
        "norm.weight": ("model.norm.weight", None),
        "output.weight": ("lm_head.weight", 0),
    }
    for i in range(LAYERS):
        for theirs, (hf, dim) in names.items():
            table[f"layers.{i}.{theirs}.weight"] = (f"model.layers.{i}.{hf}.weight", dim)
    state = model.state_dict()
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(shards)]
    for name, (hf, dim) in table.items():
        tensor = neighbours(state[hf]) if ".wq." in name or ".wk." in name else state[hf]
        pieces = [tensor] * shards if dim is None else tensor.chunk(shards, dim=dim)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    directory.mkdir(parents=True)
    for number, part in enumerate(parts):
        part["rope.freqs"] = torch.ones(HEAD_DIM // 2)
        torch.save(part, directory / f"consolidated.{number:02d}.pth")
    shape = {"dim": HEADS * HEAD_DIM, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "norm_eps": 1e-5}
    (directory / "params.json").write_text(json.dumps({**shape, "vocab_size": -1, "multiple_of": 256, **params}))


@torch.no_grad()
def distance(ours: Path, theirs: Any) -> float:
    return float((load_model(ours)(IDS) - theirs(IDS).logits).abs().max())


@pytest.mark.parametrize("shards", [1, 2])
def test_logits_from_any_number_of_shards(tmp_path: Path, tokenizer_model: bytes, shards: int) -> None:
    theirs = reference(310)
    save_meta(tmp_path / "llama/7B", theirs, shards=shards)
    (tmp_path / "llama/tokenizer.model").write_bytes(tokenizer_model)
    convert(tmp_path / "llama/7B", tmp_path / "ours", tokenizer_model=tmp_path / "llama/tokenizer.model")
    assert distance(tmp_path / "ours", theirs) <= 1e-4
    checkpoint = Checkpoint.open(tmp_path / "ours")
    specials, codec = checkpoint.config.specials, checkpoint.codec()
    assert [codec.vocab[i] for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert (specials.bos, specials.eos, specials.pad, specials.add_bos) == ("<s>", "</s>", None, True)
    assert checkpoint.config.template is None
    tokens = codec.encode("write\nü")
    assert tokens[:2] == ["<s>", "▁w"] and tokens[-3:] == ["<0x0A>", "<0xC3>", "<0xBC>"]
    assert codec.decode(tokens) == "write\nü"


def test_llama3_params_and_row_cut_embedding(tmp_path: Path, tokenizer_model: bytes) -> None:
    scaling = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    theirs = reference(310, rope_parameters=scaling, max_position_embeddings=131072)
    save_meta(tmp_path / "meta", theirs, shards=2, by_row=True, rope_theta=500000.0, use_scaled_rope=True)
    (tmp_path / "meta/tokenizer.model").write_bytes(tokenizer_model)
    convert(tmp_path / "meta", tmp_path / "ours", source="llama_meta")
    assert distance(tmp_path / "ours", theirs) <= 1e-4


def test_llama3s_tiktoken_model(tmp_path: Path) -> None:
    save_meta(tmp_path / "meta", reference(256 + 256), shards=1)
    lines = [b"%s %d\n" % (base64.b64encode(bytes([byte])), byte) for byte in range(256)]
    (tmp_path / "meta/tokenizer.model").write_bytes(b"".join(lines))
    convert(tmp_path / "meta", tmp_path / "ours")
    checkpoint = Checkpoint.open(tmp_path / "ours")
    codec, specials = checkpoint.codec(), checkpoint.config.specials
    assert codec.vocab.ids(codec.encode("aé")) == [256, ord("a"), *"é".encode()]
    assert (specials.bos, specials.eos) == ("<|begin_of_text|>", "<|end_of_text|>")
    assert checkpoint.config.stop_tokens == ["<|eom_id|>", "<|eot_id|>"]


def feed_forward(params: dict[str, Any]) -> int:
    """The width that Meta's code computes (llama-models, `FeedForward`)."""
    width = int(2 * 4 * params["dim"] / 3)
    if params.get("ffn_dim_multiplier") is not None:
        width = int(params["ffn_dim_multiplier"] * width)
    multiple: int = params["multiple_of"]
    return multiple * ((width + multiple - 1) // multiple)


@pytest.mark.parametrize("width", [48, 86, 256, 100])
def test_metas_format_is_written_as_meta_writes_it(tmp_path: Path, tokenizer_model: bytes, width: int) -> None:
    scaling = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    theirs = reference(310, width=width, rope_parameters=scaling, max_position_embeddings=131072)
    scaled = {"rope_theta": 500000.0, "use_scaled_rope": True, "rope_scaling_factor": 32.0}
    save_meta(tmp_path / "meta", theirs, shards=1, **scaled)
    (tmp_path / "meta/tokenizer.model").write_bytes(tokenizer_model)
    convert(tmp_path / "meta", tmp_path / "ours")
    export_meta(tmp_path / "ours", tmp_path / "out")
    before, after = (torch.load(tmp_path / name / "consolidated.00.pth") for name in ("meta", "out"))
    del before["rope.freqs"]
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "out/tokenizer.model").read_bytes() == tokenizer_model
    params = json.loads((tmp_path / "out/params.json").read_text())
    assert feed_forward(params) == width and params.items() >= scaled.items()
    convert(tmp_path / "out", tmp_path / "again")
    assert distance(tmp_path / "again", theirs) == distance(tmp_path / "ours", theirs) <= 1e-4


def test_a_tied_model_gets_the_output_layer_that_meta_needs(tmp_path: Path) -> None:
    model = tiny.write_checkpoint(tmp_path / "ours", tiny.llama(tie_embeddings=True, dtype="bf16"))
    written = Checkpoint.open(model)
    tokenless = written.config.model_copy(update={"tokenizer": TokenizerSpec(kind="none")})
    (model / "config.yaml").write_text(config_text(tokenless))
    write_manifest(model)
    state = torch.load(export_meta(model, tmp_path / "out") / "consolidated.00.pth")
    assert torch.equal(state["output.weight"], state["tok_embeddings.weight"])
    assert state["output.weight"].dtype == torch.bfloat16
    assert state["output.weight"].data_ptr() == state["tok_embeddings.weight"].data_ptr()


def test_what_metas_format_cannot_express_is_refused_by_name(tmp_path: Path) -> None:
    model = tiny.write_checkpoint(tmp_path / "ours", tiny.llama(attn_bias=True, sliding_window=8))
    with pytest.raises(
        UnsupportedError, match=r"sliding_window is 8.+attn_bias is true|attn_bias is true.+sliding_window is 8"
    ):
        export_meta(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def plain_meta(directory: Path, model: Any, **params: Any) -> dict[str, torch.Tensor]:
    """Write params.json; returns the tensors of one shard."""
    save_meta(directory, model, shards=1, **params)
    state: dict[str, torch.Tensor] = torch.load(directory / "consolidated.00.pth")
    (directory / "consolidated.00.pth").unlink()
    del state["rope.freqs"]
    return state


def test_mistrals_own_files(tmp_path: Path) -> None:
    theirs = reference(310, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    state = plain_meta(tmp_path / "mistral", theirs, head_dim=8, hidden_dim=48, rope_theta=1e6)
    save_file(state, tmp_path / "mistral/consolidated.safetensors")
    vocab, tokens = tekken_vocabulary()
    (tmp_path / "mistral/tekken.json").write_text(json.dumps(vocab))
    convert(tmp_path / "mistral", tmp_path / "ours")
    assert distance(tmp_path / "ours", theirs) <= 1e-4
    checkpoint = Checkpoint.open(tmp_path / "ours")
    specials = checkpoint.config.specials
    assert (specials.bos, specials.eos, specials.add_bos) == ("<s>", "</s>", True)
    assert_same_ids(checkpoint, tokens, first=4, pattern=vocab["config"]["pattern"], bos=1)

    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4}
    (tmp_path / "mistral/params.json").write_text(json.dumps({**sizes, "hidden_dim": 48}))
    with pytest.raises(CheckpointError, match="rope_theta"):
        convert(tmp_path / "mistral", tmp_path / "refused")
    (tmp_path / "mistral/params.json").write_text(json.dumps({**sizes, "moe": {"k": 2}}))
    with pytest.raises(UnsupportedError, match=r"moe in params.json"):
        convert(tmp_path / "mistral", tmp_path / "refused")


@pytest.mark.parametrize("file", ["meta_model_0.pt", "model-00001-of-00001.bin"])
def test_what_torchtune_writes_of_metas_files(tmp_path: Path, tokenizer_model: bytes, file: str) -> None:
    theirs = reference(310)
    torch.save(plain_meta(tmp_path / "tuned", theirs), tmp_path / "tuned" / file)
    (tmp_path / "tuned/tokenizer.model").write_bytes(tokenizer_model)
    convert(tmp_path / "tuned", tmp_path / "ours")
    assert distance(tmp_path / "ours", theirs) <= 1e-4
    convert(tmp_path / "tuned" / file, tmp_path / "from_file")
    assert distance(tmp_path / "from_file", theirs) <= 1e-4


TORCHTUNE = {
    **{"attention.w": "attn.", "attention_norm.weight": "sa_norm.scale", "ffn_norm.weight": "mlp_norm.scale"},
    **{"feed_forward.": "mlp.", "attn.q.": "attn.q_proj.", "attn.k.": "attn.k_proj.", "attn.v.": "attn.v_proj."},
    "attn.o.": "attn.output_proj.",
}


def test_torchtunes_own_names(tmp_path: Path, tokenizer_model: bytes) -> None:
    theirs = reference(310)
    state = {}
    for name, tensor in plain_meta(tmp_path / "tuned", theirs).items():
        for meta, tune in TORCHTUNE.items():
            name = name.replace(meta, tune)
        state["norm.scale" if name == "norm.weight" else name] = tensor
    torch.save(state, tmp_path / "tuned/torchtune_model_1.pt")
    (tmp_path / "tuned/tokenizer.model").write_bytes(tokenizer_model)
    convert(tmp_path / "tuned", tmp_path / "ours")
    assert distance(tmp_path / "ours", theirs) <= 1e-4
    torch.save(state, tmp_path / "tuned/torchtune_model_2.pt")
    with pytest.raises(CheckpointError, match=r"one model, but holds torchtune_model_1.pt, torchtune_model_2.pt"):
        convert(tmp_path / "tuned", tmp_path / "refused")


LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def tekken_vocabulary() -> tuple[dict[str, Any], list[bytes]]:
    """A file like tekken.json, with 4 control tokens, and its tokens."""
    merged = ["th", "the", " the", "in", "ing", "ü", " w", "rite", "12", "123"]
    tokens = [
        *(bytes([byte]) for byte in range(256)),
        *(token.encode() for token in merged),
        b"\xe6\xbc",
        "漢".encode(),
    ]
    vocab = [{"rank": i, "token_bytes": base64.b64encode(token).decode()} for i, token in enumerate(tokens)]
    config = {"pattern": LLAMA3_PATTERN, "default_num_special_tokens": 4, "default_vocab_size": len(tokens) + 4}
    named = ["<unk>", "<s>", "</s>", "[INST]"]
    specials = [{"rank": i, "token_str": token, "is_control": True} for i, token in enumerate(named)]
    return {"config": config, "vocab": vocab, "special_tokens": specials}, tokens


def assert_same_ids(checkpoint: Checkpoint, tokens: list[bytes], *, first: int, pattern: str, bos: int) -> None:
    """The codec's ids are those of tiktoken, from `first` on, after `bos`."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {token: rank for rank, token in enumerate(tokens)}
    theirs = tiktoken.Encoding("theirs", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    codec = checkpoint.codec()
    for text in ("the thing", " Write\n\nthe  ünïcödé 漢字 123456 🙂", "don't\t", "rite write the"):
        found = codec.encode(text)
        assert codec.vocab.ids(found) == [bos, *(first + i for i in theirs.encode_ordinary(text))]
        assert codec.decode(found) == text


def test_incomplete_models_are_refused(tmp_path: Path, tokenizer_model: bytes) -> None:
    save_meta(tmp_path / "meta", reference(310), shards=2)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.model, tekken\.json"):
        convert(tmp_path / "meta", tmp_path / "ours")
    (tmp_path / "meta/tokenizer.model").write_text("no model")
    with pytest.raises(DataError, match="must be a SentencePiece model"):
        convert(tmp_path / "meta", tmp_path / "ours")
    (tmp_path / "meta/tokenizer.model").write_bytes(tokenizer_model)
    (tmp_path / "meta/consolidated.00.pth").rename(tmp_path / "meta/consolidated.02.pth")
    with pytest.raises(CheckpointError, match=r"without a gap, but are \[1, 2\]"):
        convert(tmp_path / "meta", tmp_path / "ours")
    (tmp_path / "meta/consolidated.02.pth").unlink()
    (tmp_path / "meta/consolidated.01.pth").rename(tmp_path / "meta/consolidated.00.pth")
    with pytest.raises(CheckpointError, match="wrong shape"):
        convert(tmp_path / "meta", tmp_path / "ours")


def test_a_pickle_that_runs_code_is_refused_by_name(tmp_path: Path, tokenizer_model: bytes) -> None:
    save_meta(tmp_path / "meta", reference(310), shards=1)

    class Canary:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return open, (str(tmp_path / "pwned"), "w")  # type: ignore[return-value]

    torch.save({"x": Canary()}, tmp_path / "meta/consolidated.00.pth")
    with pytest.raises(CheckpointError, match=r"refused: its pickle names [\w.]*open"):
        convert(tmp_path / "meta", tmp_path / "ours")
    assert not (tmp_path / "pwned").exists()
    (tmp_path / "meta/consolidated.00.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        convert(tmp_path / "meta", tmp_path / "ours")
