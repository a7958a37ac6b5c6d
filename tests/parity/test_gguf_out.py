"""GGUF files that are written: the tensors and settings of files that the `gguf` package wrote, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity.test_converters_gguf import IDS
from parity.test_converters_gguf import write_gguf as write_llama
from parity.test_converters_hf import save_model
from parity.test_families import ENDS
from parity.test_families_seq2seq import save_model as save_t5
from parity.test_gguf_families import CASES, write_gguf
from parity.test_gguf_t5 import CASES as T5
from parity.test_gguf_t5 import without_charsmap, write_t5
from parity.test_t5_text import spiece  # noqa: F401  the fixture

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.gguf.number_types import FILE_TYPES
from onmt_llm.checkpoint.formats.gguf.tensors import open_part
from onmt_llm.checkpoint.formats.gguf.write import export_gguf
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.rope import RopeConfig
from onmt_llm.errors import CheckpointError, UnsupportedError

gguf = pytest.importorskip("gguf")

NOT_LOADED = {
    "gptneox sequential": "gptneox: attn_bias is false, attn_out_bias is false, tie_embeddings is true",
    "olmoe": "olmoe: kv_heads is 2",
    "chatglm": "chatglm: head_dim is 16",
    **dict.fromkeys(("deepseek2 groups, yarn", "deepseek2 of V3, yarn"), "deepseek2: latent.q_rank is 0"),
    "qwen2 yarn": "qwen2: rope.attention_factor is 1.3",
}
"""Cases that llama.cpp does not load, and why."""
UNUSED = {"nemotron.attention.layer_norm_rms_epsilon", "t5.attention.layer_norm_epsilon"}
"""Keys that llama.cpp's converter writes, and its loader does not read."""


def tensors(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def assert_same(theirs: Path, ours: Path, architecture: str) -> None:
    """The same tensors, bit by bit, and all keys of the architecture that llama.cpp reads."""
    (expected, stated), (found, written) = ((part.tensors, part.metadata) for part in map(open_part, (theirs, ours)))
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[tensor].data.ravel(), found[tensor].data.ravel()) for tensor in expected)
    read = {key: value for key, value in stated.items() if key.startswith(f"{architecture}.") and key not in UNUSED}
    assert read == {key: written.get(key, 0) for key in read}


@pytest.mark.parametrize("name", CASES)
def test_a_file_that_is_read_is_written_again(tmp_path: Path, name: str) -> None:
    architecture, kind, settings, change = CASES[name]
    save_model(tmp_path / "hf", kind, {**settings, **ENDS})
    write_gguf(tmp_path / "theirs.gguf", architecture, tmp_path / "hf", change)
    convert(tmp_path / "theirs.gguf", tmp_path / "ours")
    if name in NOT_LOADED:
        with pytest.raises(UnsupportedError, match=NOT_LOADED[name]):
            export_gguf(tmp_path / "ours", tmp_path / "back.gguf", type="f32")
        return
    file = export_gguf(tmp_path / "ours", tmp_path / "back.gguf", type="f32")
    assert_same(tmp_path / "theirs.gguf", file, architecture)
    again = Checkpoint.open(convert(file, tmp_path / "again"))
    first = Checkpoint.open(tmp_path / "ours")
    assert (again.fingerprint, again.config.model) == (first.fingerprint, first.config.model)


@pytest.mark.parametrize("name", ["t5 1.1, untied", "umt5"])
def test_an_encoder_decoder_is_written_again(tmp_path: Path, spiece: bytes, name: str) -> None:  # noqa: F811
    kind, settings = T5[name]
    save_t5(tmp_path / "hf", kind, settings, untied="untied" in name)
    write_t5(tmp_path / "theirs.gguf", tmp_path / "hf", without_charsmap(spiece))
    convert(tmp_path / "theirs.gguf", tmp_path / "ours")
    file = export_gguf(tmp_path / "ours", tmp_path / "back.gguf", type="f32")
    assert_same(tmp_path / "theirs.gguf", file, "t5")
    first, again = (Checkpoint.open(one) for one in (tmp_path / "ours", convert(file, tmp_path / "again")))
    assert (again.fingerprint, again.config.model) == (first.fingerprint, first.config.model)
    texts = ["Übung  macht ①", "<extra_id_0> den Meister"]
    assert [again.codec().encode(text) for text in texts] == [first.codec().encode(text) for text in texts]
    assert again.config.sequences == first.config.sequences and list(again.codec().vocab) == list(first.codec().vocab)


@pytest.mark.parametrize("type", FILE_TYPES)
def test_number_types(tmp_path: Path, type: str) -> None:
    write_llama(tmp_path / "theirs.gguf", "F32")
    convert(tmp_path / "theirs.gguf", tmp_path / "ours")
    file = export_gguf(tmp_path / "ours", tmp_path / "out", type=type)
    exact, found = tensors(tmp_path / "theirs.gguf"), tensors(file)
    kinds = {name: tensor.tensor_type.name.lower() for name, tensor in found.items()}
    output = type if type in ("f32", "f16", "bf16", "q8_0") else "q8_0"
    assert kinds == {
        name: "f32" if "norm" in name else output if name == "token_embd.weight" else type for name in kinds
    }
    for name, tensor in found.items():
        stored = gguf.quantize(exact[name].data, tensor.tensor_type)
        assert np.array_equal(tensor.data, stored.view(tensor.data.dtype).reshape(tensor.data.shape)), name
    read = gguf.GGUFReader(file).fields["general.file_type"].contents()
    assert gguf.LlamaFileType(read).name in (f"MOSTLY_{type.upper()}", f"ALL_{type.upper()}")


@pytest.mark.parametrize("type", ["f32", "f16", "q8_0"])
@torch.no_grad()
def test_logits_of_transformers_are_ours(tmp_path: Path, type: str) -> None:
    transformers = pytest.importorskip("transformers")
    write_llama(tmp_path / "theirs.gguf", "F32")
    file = export_gguf(convert(tmp_path / "theirs.gguf", tmp_path / "ours"), tmp_path / "out.gguf", type=type)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    read_back = load_model(convert(file, tmp_path / "again"), "fp32")
    found, stored, exact = theirs.eval()(IDS).logits, read_back(IDS), load_model(tmp_path / "ours")(IDS)
    assert (found - stored).abs().max() <= 1e-4  # of the numbers in the file
    assert type != "f32" or (found - exact).abs().max() <= 1e-4


def test_rows_of_an_odd_width_are_f16(tmp_path: Path) -> None:
    architecture, kind, settings, change = CASES["llama"]
    save_model(tmp_path / "hf", kind, {**settings, **ENDS})
    write_gguf(tmp_path / "theirs.gguf", architecture, tmp_path / "hf", change)
    convert(tmp_path / "theirs.gguf", tmp_path / "ours")
    width = Checkpoint.open(tmp_path / "ours").config.model.ffn_size
    assert width % 32 and Checkpoint.open(tmp_path / "ours").config.model.hidden_size % 32 == 0
    found = tensors(export_gguf(tmp_path / "ours", tmp_path / "out.gguf", type="q4_0"))
    assert found["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    assert found["blk.0.ffn_up.weight"].tensor_type.name == "Q4_0"


def changed(checkpoint: Path, output: Path, values: dict[str, Any], factor: float = 1.0) -> Path:
    """A copy of a checkpoint with other settings, its tensors multiplied."""
    source = Checkpoint.open(checkpoint)
    model = source.config.model.model_copy(update=values)
    with CheckpointWriter(output, source.config.model_copy(update={"model": model})) as writer:
        for name, tensor in source.tensors():
            writer.add(name, tensor * factor)
        for file in source.files():
            writer.add_file(file, file.name)
    return output


def test_what_cannot_be_written_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_llama(tmp_path / "theirs.gguf", "F32")
    ours, output = convert(tmp_path / "theirs.gguf", tmp_path / "ours"), tmp_path / "out.gguf"
    cases: dict[str, dict[str, Any]] = {
        "llama: rope.scaling is dynamic": {"rope": RopeConfig(scaling="dynamic", factor=2.0)},
        "llama: sliding_window is 16.* phi3: sliding_window is 16, which llama.cpp leaves out": {"sliding_window": 16},
        "llama: activation is relu": {"activation": "relu"},
        "llama: position is alibi": {"position": "alibi"},
    }
    for number, (sentence, values) in enumerate(cases.items()):
        with pytest.raises(UnsupportedError, match=sentence):
            export_gguf(changed(ours, tmp_path / f"changed{number}", values), output)
    with pytest.raises(CheckpointError, match=r"must be at most 65,504 to be stored as f16") as error:
        export_gguf(changed(ours, tmp_path / "large", {}, factor=1e6), output)
    assert error.value.hint == "use bf16 or f32"
    assert not output.exists() and not [file for file in tmp_path.iterdir() if ".tmp-" in file.name]
    export_gguf(ours, output)
    with pytest.raises(CheckpointError, match="exists already"):
        export_gguf(ours, output)


@torch.no_grad()
def test_llama3_scaling_is_written_as_divisors(tmp_path: Path) -> None:
    write_llama(tmp_path / "theirs.gguf", "F32")
    ours = convert(tmp_path / "theirs.gguf", tmp_path / "ours")
    rope = Checkpoint.open(ours).config.model.rope
    for scaling in ("llama3", "linear"):
        scaled = rope.model_copy(update={"scaling": scaling, "factor": 8.0})
        file = export_gguf(changed(ours, tmp_path / scaling, {"rope": scaled}), tmp_path / scaling)
        assert ("rope_freqs.weight" in tensors(file)) == (scaling == "llama3")
        again = convert(file, tmp_path / f"{scaling}_again")
        assert Checkpoint.open(again).config.model.rope == scaled
        expected = load_model(tmp_path / scaling, dtype="fp32")(IDS)
        assert (load_model(again, dtype="fp32")(IDS) - expected).abs().max() <= 1e-2  # f16
