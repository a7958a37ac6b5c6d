"""Hugging Face folders that are not what their sizes suggest: quantised weights, other heads, code of their own."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.cli.convert import main as convert_command
from onmt_llm.errors import DataError, OnmtLlmError, UnsupportedError
from onmt_llm.generate.open import open_engine
from onmt_llm.releasing import release

GATE = "model.layers.0.mlp.gate_proj"

Change = dict[str, Any]
MakeFolder = Callable[..., Path]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("foreign")
    return export_hf(tiny.write_chat_model(directory / "ours"), directory / "hf")


@pytest.fixture
def make_folder(plain: Path, tmp_path: Path) -> MakeFolder:
    """Writes the folder with other settings in config.json and with some tensors replaced or (None) left out."""

    def make(settings: Change, tensors: Change | None = None) -> Path:
        shutil.copytree(plain, tmp_path / "hf")
        file = tmp_path / "hf/config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
        changed = {**load_file(tmp_path / "hf/model.safetensors"), **(tensors or {})}
        save_file({name: one for name, one in changed.items() if one is not None}, tmp_path / "hf/model.safetensors")
        return tmp_path / "hf"

    return make


def refusal(folder: Path) -> OnmtLlmError:
    with pytest.raises(UnsupportedError) as caught:
        convert(folder, folder.parent / "ours")
    assert caught.value.exit_code == 2
    assert not (folder.parent / "ours").exists()
    return caught.value


INT8 = {f"{GATE}.weight": torch.ones(48, 32, dtype=torch.int8)}
FP8 = {f"{GATE}.weight": torch.ones(48, 32).to(torch.float8_e4m3fn)}
PACKED = {f"{GATE}.weight": None, f"{GATE}.qweight": torch.ones(4, 48, dtype=torch.int32)}


@pytest.mark.parametrize(
    ("settings", "tensors", "name"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, PACKED, r"GPTQ \(4 bits, groups of 128\)"),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, PACKED, r"AWQ \(4 bits, groups of 64\)"),
        ({"quant_method": "hqq"}, INT8, "HQQ"),
        (None, PACKED, "GPTQ or AWQ"),
        (None, INT8, rf"an unknown method \(such as {GATE}.weight\)"),
        (None, FP8, "an unknown method"),
        (None, {**INT8, f"{GATE}.SCB": torch.ones(7)}, r"bitsandbytes \(8 bits\)"),
    ],
)
def test_quantised_weights_are_named(
    make_folder: MakeFolder, settings: Change | None, tensors: Change, name: str
) -> None:
    error = refusal(make_folder({"quantization_config": settings}, tensors))
    assert error.hint
    with pytest.raises(UnsupportedError, match=name):
        raise error


def test_plain_weights_of_a_model_that_is_to_be_quantised_are_taken(
    make_folder: MakeFolder, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    folder = make_folder({"quantization_config": settings})
    with caplog.at_level(logging.WARNING):
        convert(folder, folder.parent / "ours")
    assert "bitsandbytes (4 bits, nf4)" in caplog.text


def test_another_head_is_refused(make_folder: MakeFolder) -> None:
    assert (
        "LlamaForSequenceClassification"
        in refusal(make_folder({"architectures": ["LlamaForSequenceClassification"]})).message
    )


def test_code_of_its_own_is_refused_unless_transformers_has_the_class(
    make_folder: MakeFolder, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_folder({"auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}})
    with caplog.at_level(logging.WARNING):
        convert(folder, folder.parent / "known")
    assert "modeling_llama.LlamaForCausalLM" in caplog.text
    shutil.rmtree(folder)
    folder = make_folder({"auto_map": {"AutoModelForCausalLM": "modeling_mine.LlamaMoeForCausalLM"}})
    assert "modeling_mine.LlamaMoeForCausalLM" in refusal(folder).message


def test_weights_alone_are_exported_and_released_but_read_no_text(make_folder: MakeFolder) -> None:
    folder = make_folder({})
    ours, back = folder.parent / "ours", folder.parent / "back"
    assert convert_command(["-model_dir", str(folder), "-tokenizer_model", "none", "-output", str(ours)]) == 0
    export_hf(ours, back)
    before, after = (load_file(path / "model.safetensors") for path in (folder, back))
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)
    ids = [json.loads((path / "config.json").read_text())["eos_token_id"] for path in (folder, back)]
    assert ids[0] == ids[1] is not None
    with pytest.raises(DataError, match="converted without one"):
        release(ours, folder.parent / "release")
    release(ours, folder.parent / "release", verify="off")
    engine = open_engine(ours, device="cpu")
    assert engine.logits(engine.codec.vocab.tokens([5])).shape == (1, 259)
    with pytest.raises(DataError, match="converted without one"):
        engine.codec.encode("text")


def test_an_unknown_family_is_reported_with_everything_else(make_folder: MakeFolder) -> None:
    settings = {
        "model_type": "mine",
        "auto_map": {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM2"},
        "quantization_config": {"quant_method": "gptq", "bits": 4},
    }
    message = refusal(make_folder(settings)).message
    assert all(part in message for part in ("'mine'", "modeling_mine", "GPTQ (4 bits)"))
