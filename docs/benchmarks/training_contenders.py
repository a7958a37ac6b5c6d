"""The programs that `training.py` compares, and the settings of each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training_programs import ALPHA, PROJECTIONS, RANK

from onmt_llm.checkpoint.formats.opennmt.write import model_options
from onmt_llm.config.model import ModelConfig

FEED_FORWARD = ["gate_proj", "up_proj", "down_proj"]
# OpenNMT-py's names for the same layers
_LAYERS = {"q_proj": "linear_query", "k_proj": "linear_keys", "v_proj": "linear_values", "o_proj": "final_linear"}


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        name: Name for `-only`, and of its folder.
        title: Title of the row.
        program: In `training_programs.py`.
        extra: Settings of the program in addition to the common job; for ours, settings that differ.
        full: Whether the whole model is trained.
    """

    name: str
    title: str
    program: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    full: bool = False


def contenders(*, batch_size: int) -> list[Contender]:
    """All rows of both tables.

    Args:
        batch_size: Examples per update, for programs that count batches in examples.
    """

    def theirs(weights: str, *, autocast: bool, float32_adapters: bool = True) -> dict[str, Any]:
        return {"weights": weights, "autocast": autocast, "float32_adapters": float32_adapters}

    def int8(*layers: str) -> dict[str, Any]:
        return {"quant_layers": list(layers), "quant_type": "int8"}

    same_batches = {"batch_type": "sents", "batch_size": batch_size}
    in_parts = {"batch_size": 512, "accum_count": [4]}
    all_int8 = int8(*PROJECTIONS, *FEED_FORWARD)
    hf, both = "transformers", "transformers + peft"
    autocast = theirs("fp32", autocast=True)
    return [
        Contender("opennmt", "OpenNMT-py 3.5.1, float32", "opennmt"),
        Contender("peft", f"{both}, bf16 weights", hf, theirs("bf16", autocast=False)),
        Contender(
            *("peft_bf16", f"{both}, bf16 weights and adapters", hf),
            theirs("bf16", autocast=False, float32_adapters=False),
        ),
        Contender("peft_mixed", f"{both}, bf16 weights, bf16 autocast", hf, theirs("bf16", autocast=True)),
        Contender("peft_autocast", f"{both}, float32 weights, bf16 autocast", hf, autocast),
        Contender("peft_parts", f"{both}, the same in batches of 2 of which 4 make one", hf, {**autocast, "parts": 4}),
        Contender("ours", "onmt_llm, bf16", "ours"),
        Contender("ours_bf16_compiled", "onmt_llm, bf16, compile_blocks", "ours", {"compile_blocks": True}),
        Contender("ours_sents", f"onmt_llm, bf16, batches of {batch_size} examples", "ours", same_batches),
        Contender("ours_parts", "onmt_llm, bf16, batches of 512 tokens of which 4 make one", "ours", in_parts),
        Contender("ours_packed", "onmt_llm, bf16, packed", "ours", {"packing": "pack"}),
        Contender("ours_ffn8", "onmt_llm, bf16, feed-forward in int8", "ours", int8(*FEED_FORWARD)),
        Contender("ours_int8", "onmt_llm, bf16, linear layers in int8", "ours", all_int8),
        Contender("ours_compiled", "the same, compile_blocks", "ours", {**all_int8, "compile_blocks": True}),
        Contender("ours_int8_parts", "linear layers in int8, batches of 512 tokens", "ours", {**all_int8, **in_parts}),
        Contender("full", f"{hf}, float32 weights, bf16 autocast, parts of 2", hf, {**autocast, "parts": 4}, full=True),
        Contender("full_bf16", f"{hf}, bf16 weights", hf, theirs("bf16", autocast=False), full=True),
        Contender("ours_full", "onmt_llm, float32 weights, bf16 autocast", "ours", full=True),
        Contender("ours_pure", "onmt_llm, bf16 weights", "ours", {"pure_bf16": True}, full=True),
    ]


def our_settings(
    contender: Contender, job: Mapping[str, Any], *, base: Path, corpus: Path, batch_tokens: int
) -> dict[str, Any]:
    """Our YAML.

    Args:
        contender: The row.
        job: Folder, learning rate, threads and seed.
        base: Checkpoint to train.
        corpus: JSON lines.
        batch_tokens: Tokens per batch, padding included.
    """
    lora = {"lora_layers": PROJECTIONS, "lora_rank": RANK, "lora_alpha": ALPHA}
    return {
        "data": {"corpus": {"path_jsonl": str(corpus)}},
        "transforms": ["huggingface_tokenize"],
        "epochs": 1,
        "train_from": str(base),
        "save_model": os.path.join(job["folder"], "model"),
        **({} if contender.full else lora),
        "model_dtype": "bf16",
        "batch_type": "tokens",
        "batch_size": batch_tokens,
        "bucket_size": 4096,
        "optim": "adamw",
        "learning_rate": job["learning_rate"],
        "max_grad_norm": 1.0,
        "train_steps": 1_000_000,
        "report_every": 1,
        "seed": job["seed"],
        "threads": job["threads"],
        **contender.extra,
    }


def opennmt_settings(
    job: Mapping[str, Any], *, model: ModelConfig, base: Path, vocab: Path, corpus: Sequence[Path], examples: int
) -> dict[str, Any]:
    """OpenNMT-py's YAML. With adapters, it does not read the architecture from the model file.

    Args:
        job: Folder, learning rate, batch size and seed.
        model: Architecture of the model.
        base: Its `.pt` file.
        vocab: Its tokens; the file must exist, although the model's vocabulary is used.
        corpus: The input, and the trained positions.
        examples: Number of lines in them.
    """
    shape = model_options(model)
    updates = -(-examples // job["batch_size"])
    read, trained = map(str, corpus)
    return {
        **{name: value for name, value in shape.items() if value not in ([], "")},
        "rotary_theta": int(shape["rotary_theta"]),
        "self_attn_type": "scaled-dot-flash",
        "data": {"corpus": {"path_src": read, "path_tgt": trained, "weight": 1, "transforms": []}},
        "src_vocab": str(vocab),
        "share_vocab": True,
        "decoder_start_token": "",
        "train_from": str(base),
        "override_opts": True,
        "save_model": os.path.join(job["folder"], "model"),
        "lora_layers": [_LAYERS[layer] for layer in PROJECTIONS],
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "batch_type": "sents",
        "batch_size": job["batch_size"],
        "bucket_size": examples,
        "num_workers": 0,
        "normalization": "tokens",
        "optim": "adam",  # without weight decay, that is AdamW
        "learning_rate": job["learning_rate"],
        "decay_method": "none",
        "max_grad_norm": 1.0,
        "train_steps": updates,
        "valid_steps": updates,
        "save_checkpoint_steps": updates,
        "report_every": 1,
        "seed": job["seed"],
    }
