"""Sixty foreign or damaged models: each is converted, or refused in a sentence that names it and says what to do."""

from __future__ import annotations

import json
import pickle
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import tiny
from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.formats.opennmt.write import export_opennmt
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import OnmtLlmError

Make = Callable[[Path, Path], Path | None]
"""(a Hugging Face folder, an empty folder to write into) -> the model, if it is not the second folder itself."""

TENSORS: dict[str, Any] = {"w": torch.ones(2)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("foreign")
    return export_hf(tiny.write_chat_model(directory / "ours"), directory / "hf")


def weights(hf: Path) -> dict[str, torch.Tensor]:
    return load_file(hf / "model.safetensors")


def others(hf: Path, folder: Path) -> None:
    """Copy everything but the weights."""
    shutil.copytree(hf, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))


def files(*names: str, **contents: bytes) -> Make:
    """Files with these names, with little in them."""

    def make(hf: Path, folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"{}" if name.endswith(".json") else b"x")

    return make


def file(name: str, content: bytes = b"x") -> Make:
    """A file alone."""

    def make(hf: Path, folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def pickled(name: str, content: Any) -> Make:
    def make(hf: Path, folder: Path) -> Path:
        torch.save(content, folder / name)
        return folder / name

    return make


def config(*names: str, **settings: Any) -> Make:
    """The Hugging Face folder with other settings; with `names`, these files in place of the weights."""

    def make(hf: Path, folder: Path) -> None:
        others(hf, folder)
        (folder / "config.json").write_text(json.dumps({**json.loads((hf / "config.json").read_text()), **settings}))
        files(*names)(hf, folder)
        if not names:
            shutil.copy(hf / "model.safetensors", folder)

    return make


def shards(pattern: str, *, count: int = 2, index: str = "", kept: int = 2) -> Make:
    """The weights in several files, with an index or without."""

    def make(hf: Path, folder: Path) -> None:
        others(hf, folder)
        everything, listed = sorted(weights(hf).items()), {}
        for number in range(kept):
            part = dict(everything[number::count])
            name = pattern.format(number + 1, count)
            listed |= dict.fromkeys(part, name)
            save_file(part, folder / name) if name.endswith("safetensors") else torch.save(part, folder / name)
        if index:
            listed |= {name: pattern.format(2, count) for name, _ in everything[1::count]}
            (folder / index).write_text(json.dumps({"weight_map": listed}))

    return make


def meta_names(hf: Path) -> dict[str, torch.Tensor]:
    """The tensors under Meta's names; the order of rows does not matter here."""
    names = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.": ""}
    names |= {f"self_attn.{one}_proj": f"attention.w{one}" for one in "qkvo"}
    names |= {"mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3"}
    names |= {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    state = {}
    for name, tensor in weights(hf).items():
        for theirs, meta in names.items():
            name = name.replace(theirs, meta)
        state[name] = tensor
    return state


def params(name: str) -> Make:
    def make(hf: Path, folder: Path) -> None:
        described = json.loads((hf / "config.json").read_text())
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": described["num_key_value_heads"]}
        (folder / "params.json").write_text(json.dumps({**sizes, "rope_theta": 1e4}))
        shutil.copy(hf / "tokenizer.json", folder)
        state = meta_names(hf)
        save_file(state, folder / name) if name.endswith("safetensors") else torch.save(state, folder / name)

    return make


def mistrals_repository(hf: Path, folder: Path) -> None:
    params("consolidated.safetensors")(hf, folder)
    config()(hf, folder)


def litgpt(hf: Path, folder: Path) -> None:
    others(hf, folder)
    state = weights(hf)
    names = {"model.embed_tokens": "transformer.wte", "model.norm": "transformer.ln_f", "model.layers": "transformer.h"}
    names |= {"input_layernorm": "norm_1", "post_attention_layernorm": "norm_2", "self_attn.o_proj": "attn.proj"}
    names |= {"mlp.gate_proj": "mlp.fc_1", "mlp.up_proj": "mlp.fc_2", "mlp.down_proj": "mlp.proj"}
    for i in range(2):
        qkv = [state.pop(f"model.layers.{i}.self_attn.{one}_proj.weight") for one in "qkv"]
        state[f"transformer.h.{i}.attn.qkv.weight"] = torch.cat(qkv)
    renamed = {}
    for name, tensor in state.items():
        for theirs, lit in names.items():
            name = name.replace(theirs, lit)
        renamed[name] = tensor
    torch.save(renamed, folder / "lit_model.pth")
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_query_groups": 2, "intermediate_size": 48, "bias": False}
    sizes |= {"padded_vocab_size": len(state["lm_head.weight"]), "rotary_percentage": 1.0, "parallel_residual": False}
    kinds = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP"}
    (folder / "model_config.yaml").write_text(yaml.safe_dump({**sizes, **kinds}))


def litgpt_file(hf: Path, folder: Path) -> Path:
    litgpt(hf, folder)
    return folder / "lit_model.pth"


def bare(hf: Path, folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(hf / name, folder)


def bin_file(hf: Path, folder: Path) -> None:
    others(hf, folder)
    torch.save(weights(hf), folder / "pytorch_model.bin")


def opennmt(hf: Path, folder: Path) -> Path:
    ours = tiny.write_checkpoint(folder / "ours", tiny.seq2seq(), [*tiny.tokens(23), "<blank>"])
    return export_opennmt(ours, folder / "model.pt")


def our_checkpoint(hf: Path, folder: Path) -> Path:
    return tiny.write_checkpoint(folder / "ours", tiny.llama())


def changed(name: str, change: Callable[[bytes], bytes]) -> Make:
    """The Hugging Face folder with another content of one file."""

    def make(hf: Path, folder: Path) -> None:
        shutil.copytree(hf, folder, dirs_exist_ok=True)
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return make


def quantised(end: str, dtype: torch.dtype, **settings: Any) -> Make:
    """One matrix as codes, under a name that ends like this."""

    def make(hf: Path, folder: Path) -> None:
        config(**settings)(hf, folder)
        tensors, stem = weights(hf), "model.layers.0.mlp.up_proj."
        del tensors[f"{stem}weight"]
        save_file({**tensors, f"{stem}{end}": torch.ones(4, 4).to(dtype)}, folder / "model.safetensors")

    return make


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code of a pickle was run",)


def evil_bin(hf: Path, folder: Path) -> None:
    others(hf, folder)
    torch.save({"x": RunsCode()}, folder / "pytorch_model.bin")


def plain_pickle(hf: Path, folder: Path) -> None:
    others(hf, folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"w": [1.0]}))


CONVERTED: dict[str, Make] = {
    "Hugging Face": config(),
    "Hugging Face, shards": shards("model-{:05d}-of-{:05d}.safetensors", index="model.safetensors.index.json"),
    "Hugging Face, bin": bin_file,
    "Hugging Face, bin shards": shards("pytorch_model-{:05d}-of-{:05d}.bin", index="pytorch_model.bin.index.json"),
    "Hugging Face, weights alone": bare,
    "torchtune, no index": shards("model-{:05d}-of-{:05d}.safetensors"),
    "torchtune, no index, bin": shards("model-{:05d}-of-{:05d}.bin"),
    "torchtune, older": shards("hf_model_{:04d}_0.pt"),
    "torchtune, Meta": params("meta_model_0.pt"),
    "Meta": params("consolidated.00.pth"),
    "Mistral": params("consolidated.safetensors"),
    "Mistral's repository": mistrals_repository,
    "litgpt": litgpt,
    "litgpt, file": litgpt_file,
    "OpenNMT-py": opennmt,
}
REFUSED: dict[str, tuple[Make, int, str, str]] = {
    # name: (make, exit code, what it is, what to do)
    "nothing": (lambda hf, folder: folder / "missing", 4, "there is nothing", ""),
    "empty folder": (files(), 4, "is empty", ""),
    "other files": (files("README.md", "train.log"), 4, "holds README.md, train.log", ""),
    "peft adapter": (files("adapter_config.json", "adapter_model.safetensors"), 2, "peft adapter", "-action import"),
    "our checkpoint": (our_checkpoint, 2, "checkpoint of onmt_llm", "as it is"),
    "litgpt adapter": (files("lit_model.pth.lora", "model_config.yaml"), 2, "adapter of litgpt", "merge_lora"),
    "DCP": (files(".metadata", "__0_0.distcp"), 2, "DCP", "dcp_to_torch"),
    "accelerate FSDP": (files("pytorch_model_fsdp_0/__0_0.distcp"), 2, "DCP", "dcp_to_torch"),
    "Megatron": (
        files("latest_checkpointed_iteration.txt", "iter_0000010/mp_rank_00/model_optim_rng.pt"),
        2,
        "Megatron-LM",
        "Hugging Face folder",
    ),
    "DeepSpeed": (
        files("zero_to_fp32.py", "global_step1/x_model_states.pt"),
        2,
        "DeepSpeed",
        "zero_to_fp32.py",
    ),
    "NeMo": (file("model.nemo"), 2, "NeMo", "Hugging Face folder"),
    "NeMo 2": (files("context/io.json", "weights/common.pt"), 2, "NeMo", "Hugging Face folder"),
    "Marian": (files("model.npz", "decoder.yml", "source.spm"), 2, "Marian", "convert_marian_to_pytorch"),
    "Marian, file": (file("model.npz"), 2, "Marian", "convert_marian_to_pytorch"),
    "fairseq": (files("dict.en.txt", "dict.de.txt", "model.pt"), 2, "fairseq", "Hugging Face folder"),
    "fairseq, file": (
        pickled("model.pt", {"args": Namespace(arch="transformer"), "model": TENSORS, "extra_state": {}}),
        4,
        "fairseq",
        "config.json",
    ),
    "Sockeye": (files("params.best", "vocab.src.0.json", "version"), 2, "Sockeye", "Hugging Face folder"),
    "JoeyNMT": (files("best.ckpt", "config.yaml", "src_vocab.txt"), 2, "JoeyNMT", "Hugging Face folder"),
    "eole": (files("vocab.json", "model.00.safetensors"), 2, "an eole model without", "folder of the run"),
    "CTranslate2": (files("model.bin", "config.json", "shared_vocabulary.json"), 2, "CTranslate2", "made from"),
    "ONNX": (files("model.onnx", "model.onnx_data"), 2, "ONNX", "made from"),
    "ONNX, optimum": (config("onnx/decoder_model.onnx"), 2, "ONNX", "made from"),
    "TensorRT": (files("rank0.engine", "config.json"), 2, "TensorRT engine", "made from"),
    "TensorRT-LLM": (files("rank0.safetensors", "config.json"), 2, "TensorRT-LLM", "made from"),
    "OpenVINO": (config("openvino_model.xml", "openvino_model.bin"), 2, "OpenVINO", "made from"),
    "Core ML": (files("model.mlpackage/Manifest.json"), 2, "Core ML", "made from"),
    "ExecuTorch": (file("model.pte"), 2, "ExecuTorch", "made from"),
    "TensorFlow Lite": (file("model.tflite"), 2, "TensorFlow Lite", "made from"),
    "Keras": (file("model.keras"), 2, "Keras", "Hugging Face folder"),
    "TensorFlow in transformers": (config("tf_model.h5"), 2, "Keras or TensorFlow", "Hugging Face folder"),
    "TensorFlow checkpoint": (files("checkpoint", "ckpt-5.index", "ckpt-5.data-00000-of-00001"), 2, "TensorFlow", ""),
    "Flax": (config("flax_model.msgpack"), 2, "Flax", "Hugging Face folder"),
    "Orbax": (files("_CHECKPOINT_METADATA", "default/_METADATA"), 2, "Orbax", "Hugging Face folder"),
    "diffusers": (files("model_index.json", "unet/diffusion_pytorch_model.bin"), 2, "diffusers", "language model"),
    "Hugging Face cache": (files("refs/main", "snapshots/abc/config.json"), 2, "cache", "snapshots"),
    "archive": (file("model.tar.gz"), 2, "archive", "unpack"),
    "GGML": (file("ggml-model-q4_0.bin"), 2, "GGML", "made from"),
    "llamafile": (file("llama.llamafile"), 2, "llamafile", ".gguf"),
    "Ollama": (files("Modelfile"), 2, "Ollama", ".gguf"),
    "run of torchtune": (files("epoch_0/model.bin", "epoch_1/model.bin"), 2, "torchtune", "one epoch"),
    "two epochs": (shards("hf_model_{0:04d}_{0}.pt"), 4, "hf_model_0001_1.pt, hf_model_0002_2.pt", "other epochs"),
    "weights alone": (file("model.safetensors"), 2, "without the description", "config.json"),
    "pth alone": (file("rwkv.pth"), 2, "without the description", "config.json"),
    "Lightning": (pickled("last.pt", {"pytorch-lightning_version": "2", "state_dict": TENSORS}), 4, "Lightning", ""),
    "state dict": (pickled("model.pt", TENSORS), 4, "no opt and no vocab", "config.json"),
    "EXL2": (quantised("q_weight", torch.int32, quantization_config={"quant_method": "exl2"}), 2, "EXL2", "made from"),
    "EXL3": (quantised("trellis", torch.int16, quantization_config={"quant_method": "exl3"}), 2, "exl3", "made from"),
    "HQQ": (quantised("W_q.weight", torch.uint8, quantization_config={"quant_method": "hqq"}), 2, "HQQ", "made from"),
    "Marlin": (
        quantised("qweight", torch.int32, quantization_config={"quant_method": "gptq", "checkpoint_format": "marlin"}),
        2,
        "GPTQ",
        "made from",
    ),
    "AWQ for GEMV": (
        quantised("qweight", torch.int32, quantization_config={"quant_method": "awq", "version": "gemv"}),
        2,
        "AWQ",
        "made from",
    ),
    "MLX": (
        quantised("weight", torch.uint32, quantization={"bits": 4, "group_size": 64}),
        2,
        "MLX (4 bits, groups of 64)",
        "made from",
    ),
    "config.json is no JSON": (changed("config.json", lambda content: content[:-5]), 4, "not valid JSON", ""),
    "config.json without weights": (config("training_args.txt"), 4, "must hold model.safetensors", ""),
    "config.json without model_type": (config(model_type=None), 2, "model_type in config.json must be one of", ""),
    "unknown model_type": (config(model_type="mamba"), 2, "'mamba'", ""),
    "classifier": (
        config(architectures=["LlamaForSequenceClassification"]),
        2,
        "LlamaForSequenceClassification",
        "made",
    ),
    "code of its own": (config(auto_map={"AutoModelForCausalLM": "modeling_x.XForCausalLM"}), 2, "never run", "trust"),
    "unknown key": (config(some_new_switch=1), 2, "some_new_switch", "-ignore_unknown"),
    "wrong sizes": (config(hidden_size=64), 4, "do not fit its configuration", ""),
    "wrong type": (config(hidden_size="wide"), 4, "wrong type", ""),
    "shard missing": (
        shards("model-{:05d}-of-{:05d}.safetensors", index="model.safetensors.index.json", kept=1),
        4,
        "model-00002-of-00002.safetensors",
        "",
    ),
    "shard missing, no index": (shards("model-{:05d}-of-{:05d}.safetensors", kept=1), 4, "2 shards", ""),
    "safetensors cut": (changed("model.safetensors", lambda content: content[:-100]), 4, "model.safetensors", ""),
    "Git LFS": (
        changed("model.safetensors", lambda content: b"version https://git-lfs.github.com/spec/v1\n"),
        4,
        "Git LFS pointer",
        "git lfs pull",
    ),
    "pickle with code": (evil_bin, 4, "its pickle names", "safetensors"),
    "pickle of something else": (plain_pickle, 4, "pytorch_model.bin", ""),
    "GGUF cut": (file("model.gguf", b"GGUF\x03\x00"), 4, "not a readable GGUF", "copy it again"),
    "tokeniser cut": (changed("tokenizer.json", lambda content: content[:-50]), 4, "tokenizer.json", ""),
}


def test_there_are_sixty() -> None:
    assert len(CONVERTED) + len(REFUSED) >= 60


@pytest.mark.parametrize("name", CONVERTED)
def test_converted(plain: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = CONVERTED[name](plain, folder) or folder
    assert Checkpoint.open(convert(path, tmp_path / "ours")).config.model.hidden_size == 32


@pytest.mark.parametrize("name", REFUSED)
def test_refused(plain: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, code, what, advice = REFUSED[name]
    folder = tmp_path / "model"
    folder.mkdir()
    path = make(plain, folder) or folder
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OnmtLlmError) as caught:
        convert(path, tmp_path / "ours")
    assert what in caught.value.message and advice in (caught.value.hint or "")
    assert caught.value.exit_code == code
    assert sorted(tmp_path.rglob("*")) == before
    assert "code of a pickle" not in capfd.readouterr().out
