"""The examples in model cards run as they stand in the folder that holds the model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.formats.peft.write import export_peft
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.checkpoint import AdapterSpec
from onmt_llm.releasing import release


def adapter(base: Path, output: Path) -> Path:
    """An adapter of random numbers on one layer of `base`."""
    whole = Checkpoint.open(base)
    spec = AdapterSpec(rank=2, alpha=4, layers=["q_proj"], base=str(base), base_fingerprint=whole.fingerprint)
    with CheckpointWriter(output, whole.config.model_copy(update={"adapter": spec})) as writer:
        for i in range(2):
            layer = f"decoder.layers.{i}.self_attn.q_proj"
            rows, columns = whole.shape(f"{layer}.weight")
            writer.add(f"{layer}.lora_a", torch.randn(2, columns))
            writer.add(f"{layer}.lora_b", torch.randn(rows, 2))
        for file in whole.files():
            writer.add_file(file, file.name)
    return output


def peft_folder(model: Path, output: Path) -> None:
    export_hf(model, output.with_name("base-hf"))
    export_peft(adapter(model, output.with_name("adapter")), output, base_name="base-hf")


FORMATS: dict[str, Callable[[Path, Path], object]] = {
    "transformers": export_hf,
    "peft": peft_folder,
    "ctranslate2": lambda model, output: release(model, output, verify="off"),
    "safetensors": lambda model, output: release(model, output, format="safetensors"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_of_a_card_answers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    FORMATS[name](tiny.write_chat_model(tmp_path / "own"), tmp_path / "mine")
    (example,) = re.findall(r"^```python\n(.*?)^```$", (tmp_path / "mine/README.md").read_text(), flags=re.M | re.S)
    capsys.readouterr()
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out
