"""Convert, merge, export and release hold one large tensor at a time, once, in no wider type than it is stored in."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny
from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.merge import merge_lora
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.checkpoint import AdapterSpec, TokenizerSpec
from onmt_llm.releasing import release
from onmt_llm.releasing.blockwise import Blockwise

VOCAB, WIDTH = 32_768, 512
LARGEST = 2 * VOCAB * WIDTH  # 34 MB, of the embedding and of the output layer
IN_WORK = 24_000_000  # blocks of rows, and memory that malloc keeps
MODEL = tiny.llama(vocab_size=VOCAB, hidden_size=WIDTH, decoder_layers=1, dtype="bf16")
PEAK = Path("/proc/self/clear_refs")

pytestmark = pytest.mark.skipif(not PEAK.exists(), reason="needs Linux")


def growth(action: Callable[[], object]) -> int:
    """Bytes by which the memory of this process exceeds, at most, what it is before."""

    def read(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

    gc.collect()
    PEAK.write_text("5")  # resets VmHWM
    before = read("VmRSS")
    action()
    return read("VmHWM") - before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A large checkpoint, an adapter of its embedding, and the same model for `transformers`."""
    path = tmp_path_factory.mktemp("large")
    vocab = tiny.tokens(VOCAB)
    tiny.write_checkpoint(path / "model", MODEL, vocab, tokenizer=TokenizerSpec(kind="none"))
    base = Checkpoint.open(path / "model")
    spec = AdapterSpec(rank=4, alpha=8, layers=["embed_tokens"], base="model", base_fingerprint=base.fingerprint)
    with CheckpointWriter(path / "adapter", base.config.model_copy(update={"adapter": spec})) as writer:
        writer.add("decoder.embed_tokens.lora_a", torch.randn(4, VOCAB))
        writer.add("decoder.embed_tokens.lora_b", torch.randn(WIDTH, 4))
        tiny.write_vocab(writer.directory / "vocab.txt", vocab)
    export_hf(path / "model", path / "hf")
    release(path / "model", path / "warm-up", verify="off")  # imports what releases need
    return path


def test_no_step_holds_a_large_tensor_twice(folder: Path) -> None:
    model, out = folder / "model", folder / "out"
    steps = {
        "convert": lambda: convert(folder / "hf", out / "convert", tokenizer_model="none"),
        "convert to float32": lambda: convert(folder / "hf", out / "wide", tokenizer_model="none", dtype="fp32"),
        "merge": lambda: merge_lora(model, folder / "adapter", out / "merge"),
        "export": lambda: export_hf(model, out / "export"),
        "release": lambda: release(model, out / "release", quantization="int8", verify="off"),
    }
    grown = {name: growth(step) for name, step in steps.items()}
    assert {name: grew for name, grew in grown.items() if grew > LARGEST + IN_WORK} == {}


def test_the_model_that_a_release_is_compared_with_is_not_held(folder: Path) -> None:
    blockwise = Blockwise(Checkpoint.open(folder / "model"))
    grew = growth(lambda: blockwise.logits(blockwise.run([[1, 2, 3], [4, 5]])[0]))
    assert grew < IN_WORK
