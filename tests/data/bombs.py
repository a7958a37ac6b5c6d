"""Small files of other toolkits' models that announce, or become, something large.

    python tests/data/bombs.py FOLDER

makes them, opens each as `limited.py` does, and prints as JSON what that took.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

HUGE = 2**61


def huggingface(folder: Path, **config: Any) -> Path:
    """A model of one layer, and its tokeniser."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True)
    layer = "model.layers.0."
    matrices = dict.fromkeys((f"{layer}self_attn.{name}_proj" for name in "qkvo"), (8, 8))
    matrices |= dict.fromkeys((f"{layer}mlp.{name}_proj" for name in ("gate", "up")), (16, 8))
    matrices |= {f"{layer}mlp.down_proj": (8, 16), "model.embed_tokens": (260, 8), "lm_head": (260, 8)}
    norms = (f"{layer}input_layernorm", f"{layer}post_attention_layernorm", "model.norm")
    tensors = {name: torch.ones(size) for name, size in {**matrices, **dict.fromkeys(norms, (8,))}.items()}
    save_file({f"{name}.weight": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    settings = {
        "model_type": "llama",
        "num_attention_heads": 2,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "vocab_size": 260,
        "intermediate_size": 16,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    model.save(str(folder / "tokenizer.json"))
    return folder


def tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same, with another tokenizer.json."""
    file = huggingface(folder) / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder


def growing(*steps: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(normalizer={"type": "Sequence", "normalizers": list(steps)})


def replacing(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def charsmap(longest: int) -> dict[str, Any]:
    import base64

    table = struct.pack("<I", 4) + bytes(4) + b"a" * longest + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode("ascii")}


def meta(folder: Path, **params: Any) -> Path:
    folder.mkdir(parents=True)
    tensors = {"tok_embeddings.weight": torch.ones(20, 8), "layers.0.feed_forward.w1.weight": torch.ones(16, 8)}
    torch.save(tensors, folder / "consolidated.00.pth")
    settings = {"dim": 8, "n_layers": 1, "n_heads": 2, **params}
    (folder / "params.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def inflating(folder: Path) -> Path:
    """A .pth whose pickle is 2 MB in the file and 2 GB when it is read."""
    file = meta(folder) / "consolidated.00.pth"
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            with archive.open(name, "w", force_zip64=True) as out:
                if name.endswith("data.pkl"):
                    for _ in range(2000):
                        out.write(b"N0" * 500_000)
                out.write(content)
    return folder


def expanded(folder: Path) -> Path:
    """A .pth of a tensor that says that it has 10**12 values, and stores one."""
    torch.save({"tok_embeddings.weight": torch.ones(1).expand(10**6, 10**6)}, meta(folder) / "consolidated.00.pth")
    return folder


def pipe(folder: Path, file: str) -> Path:
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    return folder


def sharded_pipe(folder: Path) -> Path:
    """An index of safetensors whose shard is a pipe."""
    huggingface(folder)
    index = {"weight_map": {"lm_head.weight": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return pipe(folder, "model-1.safetensors")


def gguf(folder: Path, keys: int, body: bytes, tensors: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + body)
    return folder


def gguf_key(kind: int, *layout: Any) -> bytes:
    return struct.pack("<Q3sI", 3, b"key", kind) + struct.pack(*layout)


def gguf_model(folder: Path, layers: int) -> Path:
    """A GGUF file with the keys of a model, and two tensors."""
    import numpy as np
    from gguf import GGUFWriter

    folder.mkdir(parents=True)
    writer = GGUFWriter(folder / "m.gguf", "llama")
    writer.add_block_count(layers)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.ones((2, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def checkpoint(folder: Path, **model: Any) -> Path:
    """A checkpoint of ours of one layer, its config.yaml changed behind its back."""
    from onmt_llm.checkpoint.convert import convert

    convert(huggingface(folder / "hf"), folder / "ours")
    file = folder / "ours" / "config.yaml"
    text = file.read_text(encoding="utf-8")
    for key, value in model.items():
        text = text.replace(f"{key}: 1\n", f"{key}: {value}\n")
    file.write_text(text, encoding="utf-8")
    return folder / "ours"


def lora(folder: Path, **changed: Any) -> None:
    from onmt_llm.checkpoint.load import build_model
    from onmt_llm.checkpoint.store import Checkpoint
    from onmt_llm.config.checkpoint import AdapterSpec

    spec = AdapterSpec(
        **{"rank": 1_000_000, "alpha": 16, "layers": ["q_proj"], "base": "", "base_fingerprint": "", **changed}
    )
    build_model(Checkpoint.open(folder), addition=spec)


def opened(folder: Path) -> None:
    from onmt_llm.checkpoint.convert import convert

    convert(folder, folder.parent / f"{folder.name}-out")


def loaded(folder: Path) -> None:
    from onmt_llm.checkpoint.load import load_model

    load_model(folder)


def outcome(use: Callable[[Path], None], folder: Path) -> list[Any]:
    """Exit code and message; 0 where it was taken."""
    from onmt_llm.errors import OnmtLlmError

    try:
        use(folder)
    except OnmtLlmError as error:
        return [error.exit_code, error.message]
    return [0, ""]


def ids(content: dict[str, Any]) -> None:
    content["added_tokens"].append(
        {
            **{"id": 4_000_000_000, "content": "<x>", "special": True, "single_word": False},
            **dict.fromkeys(("lstrip", "rstrip", "normalized"), False),
        }
    )
    content["model"]["vocab"]["<x>"] = 4_000_000_000


A, ANY, MANY = {"String": "a"}, {"Regex": "."}, "a" * 1000

BOMBS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Path]]] = {
    "hf as it should be": (opened, huggingface),
    "meta: layers": (opened, partial(meta, n_layers=10**9)),
    "meta: layers within bounds": (opened, partial(meta, n_layers=4000)),
    "hf: vocabulary": (opened, partial(huggingface, vocab_size=10**12)),
    "hf: vocabulary within bounds": (opened, partial(huggingface, vocab_size=10**8)),
    "hf: layers": (opened, partial(huggingface, num_hidden_layers=10**9)),
    "hf: layers within bounds": (opened, partial(huggingface, num_hidden_layers=4000)),
    "hf: width": (opened, partial(huggingface, hidden_size=10**12)),
    "hf: positions": (opened, partial(huggingface, max_position_embeddings=10**12)),
    "hf: ids": (opened, partial(tokenizer, change=ids)),
    "hf: four times a thousand": (opened, partial(tokenizer, change=growing(*[replacing(A, MANY)] * 4))),
    "hf: four times ten": (opened, partial(tokenizer, change=growing(*[replacing(ANY, "a" * 10)] * 4))),
    "hf: a table": (opened, partial(tokenizer, change=growing(charsmap(100_000)))),
    "hf: pipe": (opened, sharded_pipe),
    "pth: pickle that inflates": (opened, inflating),
    "pth: tensor that is a view": (opened, expanded),
    "pth: pipe": (opened, lambda folder: pipe(meta(folder), "consolidated.00.pth")),
    "gguf: layers": (opened, partial(gguf_model, layers=2**31)),
    "gguf: layers within bounds": (opened, partial(gguf_model, layers=4000)),
    "gguf: values": (opened, partial(gguf, keys=1, body=gguf_key(9, "<IQQ", 4, HUGE, 0))),
    "gguf: strings": (opened, partial(gguf, keys=1, body=gguf_key(9, "<IQQ", 8, HUGE, 0))),
    "gguf: a string": (opened, partial(gguf, keys=1, body=gguf_key(8, "<Q", HUGE))),
    "gguf: keys": (opened, partial(gguf, keys=HUGE, body=bytes(64))),
    "gguf: tensors": (opened, partial(gguf, keys=0, body=bytes(64), tensors=HUGE)),
    "gguf: dimensions": (
        opened,
        partial(gguf, keys=0, body=struct.pack("<QI", 0, 2**31) + bytes(64), tensors=1),
    ),
    "gguf: nested": (
        opened,
        partial(gguf, keys=1, body=gguf_key(9, "<") + struct.pack("<IQ", 9, 1) * 20_000 + struct.pack("<IQ", 4, 0)),
    ),
    "gguf: pipe": (opened, lambda folder: pipe(gguf(folder, 0, b""), "m.gguf")),
    "ours: layers": (loaded, partial(checkpoint, decoder_layers=10**9)),
    "ours: layers within bounds": (loaded, partial(checkpoint, decoder_layers=4000)),
    "ours: pipe": (loaded, lambda folder: pipe(checkpoint(folder), "model.safetensors")),
    "lora: rank": (lora, checkpoint),
    "lora: rank of a layer": (partial(lora, rank=4, rank_pattern={"q_proj": 10**6}), checkpoint),
    "lora: rank of an embedding": (partial(lora, layers=[], embedding=True), checkpoint),
    "lora: rank of PiSSA": (partial(lora, init="pissa"), checkpoint),
}

if __name__ == "__main__":
    from limited import measured

    warnings.simplefilter("ignore")
    made = {name: make(Path(sys.argv[1]) / str(number)) for number, (name, (_, make)) in enumerate(BOMBS.items())}
    outcome(opened, made["hf as it should be"])  # loads everything
    made["hf as it should be"] = huggingface(Path(sys.argv[1]) / "again")
    print(json.dumps({name: measured(partial(outcome, BOMBS[name][0], folder)) for name, folder in made.items()}))
