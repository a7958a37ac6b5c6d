"""Formats that are not read: what they are, by their files, and what to do with a model of each."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TO_HF = "save it as a Hugging Face folder (safetensors, config.json) with the program that wrote it, and convert that"
_ORIGINAL = "convert the model that it was made from"


@dataclass(frozen=True)
class UnreadFormat:
    """A format that is not read.

    Attributes:
        what: What it is, with an article.
        files: Patterns of files of which one is in its directory, or is the model itself.
        hint: What to do.
    """

    what: str
    files: tuple[str, ...]
    hint: str = _TO_HF


UNREAD_FORMATS = (
    UnreadFormat(
        "a peft adapter",
        ("adapter_config.json",),
        "onmt_llm_lora -action import -base_model BASE -lora_weights {path} -output NEW_DIRECTORY",
    ),
    UnreadFormat(
        "a CTranslate2 release",
        ("config.yaml&model.bin",),
        "it can only be served; -to converts the checkpoint that it was made from",
    ),
    UnreadFormat("a checkpoint of onmt_llm", ("config.yaml&manifest.json",), "it needs no conversion: use it as it is"),
    UnreadFormat("an adapter of litgpt", ("lit_model.pth.*",), "litgpt merge_lora {path} makes a model of it"),
    UnreadFormat(
        "a DeepSpeed checkpoint",
        ("zero_to_fp32.py", "*_model_states.pt"),
        "run the zero_to_fp32.py in it: its pytorch_model.bin, with config.json beside it, can be converted",
    ),
    UnreadFormat(
        "a distributed PyTorch checkpoint (DCP)",
        ("*.distcp", "*/*.distcp"),
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} model.pt; or " + _TO_HF,
    ),
    UnreadFormat("a Megatron-LM checkpoint", ("latest_checkpointed_iteration.txt", "mp_rank_0*", "iter_*/mp_rank_0*")),
    UnreadFormat("a NeMo model", ("*.nemo", "model_weights/metadata.json", "context/io.json")),
    UnreadFormat(
        "a Marian model",
        ("*.npz&*.yml", "*.npz"),
        "transformers' convert_marian_to_pytorch.py makes a Hugging Face folder of it; the published Opus-MT models "
        "exist as such",
    ),
    UnreadFormat("a fairseq model", ("dict.*.txt", "dict.txt")),
    UnreadFormat("a Sockeye model", ("params.best", "params.0*")),
    UnreadFormat("a JoeyNMT model", ("best.ckpt", "*.ckpt&config.yaml")),
    UnreadFormat(
        "an eole model without its config.json or its vocab.json",
        ("model.00.safetensors",),
        "copy both from the folder of the run or of the conversion",
    ),
    UnreadFormat("a CTranslate2 model", ("model.bin&*vocabulary*",), _ORIGINAL),
    UnreadFormat("an ONNX model", ("*.onnx", "onnx/*.onnx"), _ORIGINAL),
    UnreadFormat("a TensorRT engine", ("*.engine", "*.plan"), _ORIGINAL),
    UnreadFormat("a TensorRT-LLM checkpoint", ("rank0.safetensors",), _ORIGINAL),
    UnreadFormat("an OpenVINO model", ("openvino_model.xml", "*.xml&*.bin"), _ORIGINAL),
    UnreadFormat("a Core ML model", ("*.mlpackage", "*.mlmodel"), _ORIGINAL),
    UnreadFormat("an ExecuTorch program", ("*.pte",), _ORIGINAL),
    UnreadFormat("a TensorFlow Lite model", ("*.tflite",), _ORIGINAL),
    UnreadFormat(
        "a Keras or TensorFlow model", ("*.keras", "*.h5", "saved_model.pb", "*.ckpt-*.index", "ckpt-*.index")
    ),
    UnreadFormat("a Flax model", ("flax_model.msgpack", "flax_model*.msgpack")),
    UnreadFormat("an Orbax checkpoint", ("_CHECKPOINT_METADATA", "*/_METADATA")),
    UnreadFormat("a diffusers model, which is no language model", ("model_index.json",), "convert a language model"),
    UnreadFormat(
        "a folder of the Hugging Face cache",
        ("refs&snapshots",),
        "name the one in {path}/snapshots with config.json",
    ),
    UnreadFormat("a GGML file, older than GGUF", ("ggml-*.bin", "*.ggml*.bin"), _ORIGINAL),
    UnreadFormat("a llamafile", ("*.llamafile",), "unzip it, and name the .gguf file in it"),
    UnreadFormat("an archive", ("*.zip", "*.tar", "*.tar.gz", "*.tgz", "*.7z"), "unpack it, and name the folder"),
    UnreadFormat("a run of torchtune", ("epoch_*/",), "name the folder of one epoch"),
    UnreadFormat("a file of Ollama's, without the model", ("Modelfile",), "name the .gguf file that it names"),
    UnreadFormat(
        "weights without the description of their model",
        ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.ckpt"),
        "name a folder with the weights and config.json (Hugging Face) or params.json (Meta, Mistral)",
    ),
)
"""In the order in which they are tried."""


def recognised(path: Path) -> UnreadFormat | None:
    """The format of the model at `path`, a directory or a file, if it is one that is not read."""
    return next((one for one in UNREAD_FORMATS if any(_matches(path, each) for each in one.files)), None)


def _matches(path: Path, pattern: str) -> bool:
    """Whether a directory has files of all patterns (`a&b`), or a file's name matches the one pattern."""
    parts = pattern.split("&")
    if path.is_dir():
        return all(any(path.glob(part)) for part in parts)
    return len(parts) == 1 and "/" not in pattern and path.match(pattern)


def what_is_there(path: Path) -> str:
    """What a path leads to, for a message."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "there is nothing"
    if stat.S_ISDIR(mode):
        names = sorted(file.name for file in path.iterdir())
        return f"holds {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "is empty"
    return "is a file of an unknown kind"


_PICKLED = (
    ({"pytorch-lightning_version"}, "a PyTorch Lightning checkpoint"),
    ({"args", "model", "extra_state"}, "a fairseq model"),
    ({"cfg", "model", "extra_state"}, "a fairseq model"),
    ({"model_state", "best_ckpt_score"}, "a JoeyNMT model"),
    ({"model_state_dict"}, "a training checkpoint"),
    ({"state_dict"}, "a training checkpoint"),
    ({"module", "ds_config"}, "a DeepSpeed checkpoint"),
    ({"checkpoint_version", "iteration", "model"}, "a Megatron-LM checkpoint"),
)
"""Keys of pickled dictionaries, and what has them."""


def pickled(content: Mapping[Any, Any]) -> str | None:
    """What a pickled dictionary is, by its keys; None = unknown."""
    return next((what for keys, what in _PICKLED if keys <= content.keys()), None)
