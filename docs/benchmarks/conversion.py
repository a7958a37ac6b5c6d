"""Peak memory, CPU time and rate of convert, merge, export and release, on random models that are written first.

`python docs/benchmarks/conversion.py SCRATCH [1.35B | 8B]` writes a Hugging Face LLaMA in bf16 into the folder SCRATCH
(8B: the shapes of Llama 3 8B, with one of its 32 layers, since peaks do not depend on their number), runs each command
in a process of its own, and removes all files. Columns:

- anonymous: peak of RssAnon, the memory that the kernel cannot take back; this is what must fit into the machine;
- peak: VmHWM, which also counts pages of mapped files, code included, that the kernel drops when memory is short;
- limit: 1.2 times the largest tensor as it is stored, and 300 MB, for Python, torch and what is in work;
- CPU: seconds of all threads; rate: bytes of the model read, divided by the seconds that passed.

The releases are compared with the model on about 2,000 tokens. What CTranslate2 itself holds of the release is measured
last, with the same text; a verified release may hold as much in addition. Sizes are in MB (10^6 bytes).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from onmt_llm.checkpoint.files.blocks import row_blocks
from onmt_llm.checkpoint.files.safetensors import ShardedWriter
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.checkpoint import AdapterSpec
from onmt_llm.releasing.verify import bundled_text

Shape = tuple[int, int]

SIZES = {
    "1.35B": {"vocab_size": 49_152, "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 24}
    | {"num_attention_heads": 16, "num_key_value_heads": 16},
    "8B": {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 1}
    | {"num_attention_heads": 32, "num_key_value_heads": 8},
}
FIXED = {"model_type": "llama", "tie_word_embeddings": False, "max_position_embeddings": 2048, "eos_token_id": 1}
RANK = 16
CHARACTERS = 2000

RELEASE = "from onmt_llm.cli.release import main; main(sys.argv[1:])"
CONVERT = "from onmt_llm.cli.convert import main; main(sys.argv[1:])"
LORA = "from onmt_llm.cli.lora import main; main(sys.argv[1:])"
CTRANSLATE2_CONVERTER = """
from ctranslate2.converters import TransformersConverter
TransformersConverter(sys.argv[1]).convert(sys.argv[2], quantization="int8")
"""
CTRANSLATE2 = """
import ctranslate2
generator = ctranslate2.Generator(sys.argv[1], device="cpu", compute_type="int8_float32")
for _ in range(8):
    generator.forward_batch([list(range(256))], return_log_probs=False)
"""


def tensor_shapes(config: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, ffn = config["hidden_size"], config["intermediate_size"]
    kv = width * config["num_key_value_heads"] // config["num_attention_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        path = f"model.layers.{layer}"
        for name, rows in (("q", width), ("k", kv), ("v", kv), ("o", width)):
            yield f"{path}.self_attn.{name}_proj.weight", (rows, width)
        for name, shape in (("gate", (ffn, width)), ("up", (ffn, width)), ("down", (width, ffn))):
            yield f"{path}.mlp.{name}_proj.weight", shape
        yield f"{path}.input_layernorm.weight", (width,)
        yield f"{path}.post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (config["vocab_size"], width)


def write_model(directory: Path, config: dict[str, int]) -> None:
    """Write a model with random weights, the same ones each time, and a tokeniser of bytes."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(FIXED | config))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    filler = (f"<{number}>" for number in range(config["vocab_size"] - len(alphabet)))
    vocab = {token: number for number, token in enumerate([*alphabet, *filler])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    generator = torch.Generator().manual_seed(1)
    writer = ShardedWriter(directory, "1GB")
    for name, shape in tensor_shapes(config):
        writer.begin(name, torch.bfloat16, shape)
        for block in row_blocks(torch.empty(shape, dtype=torch.bfloat16, device="meta")):
            noise = torch.randn(block.shape, generator=generator)
            writer.write((1 + 0.1 * noise if "norm" in name else 0.02 * noise).bfloat16())
    writer.close()


def write_adapter(directory: Path, base: Checkpoint) -> None:
    """Write a LoRA adapter of all linear layers, with random weights."""
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    spec = AdapterSpec(rank=RANK, alpha=2 * RANK, layers=layers, base=str(base.path), base_fingerprint=base.fingerprint)
    with CheckpointWriter(directory, base.config.model_copy(update={"adapter": spec})) as writer:
        for name in base.model_names():
            layer, _, _ = name.rpartition(".")
            if layer.endswith("_proj"):
                rows, columns = base.shape(name)
                writer.add(f"{layer}.lora_a", 0.02 * torch.randn(RANK, columns))
                writer.add(f"{layer}.lora_b", 0.02 * torch.randn(rows, RANK))
        for file in base.files():
            writer.add_file(file, file.name)


def measure(what: str, code: str, *words: str | Path, read: int, limit: float) -> None:
    """Run a command in a process of its own, and print a line."""
    command = [sys.executable, "-c", f"import sys\n{code}", *map(str, words)]
    start, anonymous, peak = time.monotonic(), 0, 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        sizes = dict(line.split(":", 1) for line in status.splitlines())
        if "VmHWM" in sizes:
            anonymous = max(anonymous, 1024 * int(sizes["RssAnon"].split()[0]))
            peak = max(peak, 1024 * int(sizes["VmHWM"].split()[0]))
        time.sleep(0.005)
    seconds = time.monotonic() - start
    _, _, usage = os.wait4(process.pid, 0)
    assert process.stderr is not None
    if "Traceback" in (errors := process.stderr.read()) or "rror" in errors:
        print(errors)
    cpu, rate = usage.ru_utime + usage.ru_stime, read / seconds / 1e6
    print(
        f"{what:28} {anonymous / 1e6:9,.0f} {peak / 1e6:7,.0f} {limit / 1e6:7,.0f} {cpu:6.0f} {rate:6.0f}", flush=True
    )


def main() -> None:
    scratch, config = Path(sys.argv[1]) / "conversion", SIZES[sys.argv[2] if len(sys.argv) > 2 else "1.35B"]
    hf, ours, adapter, text = scratch / "hf", scratch / "ours", scratch / "adapter", scratch / "text.txt"
    try:
        write_model(hf, config)
        text.write_text(bundled_text()[:CHARACTERS])
        size = sum(file.stat().st_size for file in hf.glob("*.safetensors"))
        limit = 1.2 * 2 * config["vocab_size"] * config["hidden_size"] + 300e6
        print(f"{size / 1e6:,.0f} MB of weights\n{'':28} anonymous    peak   limit    CPU   MB/s")
        measure("convert", CONVERT, "-model_dir", hf, "-output", ours, read=size, limit=limit)
        write_adapter(adapter, Checkpoint.open(ours))
        merge = ("-action", "merge", "-base_model", ours, "-lora_weights", adapter, "-output", scratch / "merged")
        measure("merge", LORA, *merge, read=size, limit=limit)
        shutil.rmtree(scratch / "merged")
        for form in ("hf", "gguf"):
            (scratch / "out").mkdir()
            words = ("-model_dir", ours, "-output", scratch / "out" / "model.gguf", "-to", form)
            measure(f"export, {form}", CONVERT, *words, read=size, limit=limit)
            shutil.rmtree(scratch / "out")
        for quality in ("plain", "rotated"):
            for verify in ("off", "warn"):
                output = scratch / f"{quality}-{verify}"
                words = ("-model", ours, "-output", output, "-quantization", "int8", "-quality", quality)
                words += ("-verify", verify, "-verify_text", text)
                what = f"release, {quality}{'' if verify == 'off' else ', verified'}"
                measure(what, RELEASE, *words, read=size, limit=limit)
        measure("CTranslate2, release loaded", CTRANSLATE2, scratch / "rotated-warn", read=size // 2, limit=0)
        if config is SIZES["1.35B"]:  # it holds the whole model
            measure("CTranslate2's own converter", CTRANSLATE2_CONVERTER, hf, scratch / "out", read=size, limit=limit)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
