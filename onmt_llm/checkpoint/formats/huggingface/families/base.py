"""`Family`: how one Hugging Face architecture maps to `ModelConfig` and to our tensors, both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from onmt_llm.checkpoint.export_guard import Check, anything
from onmt_llm.checkpoint.formats.huggingface.families.config_map import HfConfig, Row, Values
from onmt_llm.checkpoint.formats.rules import Op, Rule, rule
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import UnsupportedError

HARMLESS = (
    # names, versions, types
    *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "model_type", "dtype"),
    *("torch_dtype", "tokenizer_class", "transformers.js_config", "unsloth_*", "task_specific_params"),
    # answered by `declared` and `quantized`
    *("architectures", "auto_map", "quantization_config"),
    # token ids
    *("*_token_id", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "prefix"),
    # training
    *("initializer_range", "*dropout", "*_pdrop", "gradient_checkpointing"),
    # what a call returns, and how it is computed
    *("return_dict*", "use_return_dict", "output_attentions", "output_hidden_states", "output_past"),
    *("output_scores", "use_cache", "chunk_size_feed_forward", "use_bfloat16"),
    *("tf_legacy_loss", "*attn_implementation*", "*flash_attn*", "*_experts_implementation*", "torchscript"),
    *("pretraining_tp",),
    # encoder-decoders, classifiers
    *("is_encoder_decoder", "is_decoder", "tie_encoder_decoder", "cross_attention_hidden_size"),
    *("add_cross_attention", "finetuning_task", "problem_type", "id2label", "label2id", "*num_labels"),
    *("pruned_heads",),
    # defaults of generation, which older versions of transformers kept here
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
    *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
    *("length_penalty", "num_return_sequences", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("remove_invalid_values", "exponential_decay_length_penalty"),
)
"""Patterns of keys that change nothing that a decoder computes, in any family."""


@dataclass(frozen=True)
class Family:
    """One Hugging Face architecture.

    Attributes:
        model_type: As in `config.json`.
        architecture: The class of transformers.
        rows: The map between `config.json` and `ModelConfig`; where two set the same, the later one counts.
        rules: The weight-name rules, with `{i}` filled in.
        ignore: Patterns of tensors to skip.
        models: Well-known models of the family.
        harmless: Patterns of keys that change nothing, beyond `HARMLESS`.
        older: Older beginnings of tensor names and the current ones.
    """

    model_type: str
    architecture: str
    rows: Sequence[Row]
    rules: Callable[[ModelConfig], list[Rule]]
    ignore: tuple[str, ...] = ()
    models: str = ""
    harmless: tuple[str, ...] = ()
    older: tuple[tuple[str, str], ...] = ()

    @property
    def origin(self) -> str:
        """What converted models of this family name as their source, before their own name."""
        return f"Hugging Face {self.model_type}"

    @property
    def keys(self) -> list[str]:
        """The keys of `config.json` that the map reads."""
        return [key for row in self.rows for key in row.keys]

    @cached_property
    def expressible(self) -> Mapping[str, Check]:
        """The settings of `ModelConfig` that the family can express (see `export_guard`)."""
        return {**anything("dtype"), **{name: check for row in self.rows for name, check in row.checks.items()}}

    def to_model(self, hf: HfConfig) -> ModelConfig:
        """`config.json` -> our architecture.

        Raises:
            CheckpointError: A key is missing.
            UnsupportedError: A value, or a key, means something that the map does not know.
        """
        check_keys(hf, [*self.keys, *self.harmless], self.model_type)
        return ModelConfig.model_validate({name: value for row in self.rows for name, value in row.read(hf).items()})

    def to_hf(self, config: ModelConfig) -> Values:
        """Our architecture -> `config.json`, without token ids and dtype."""
        written = {key: value for row in self.rows for key, value in row.write(config).items()}
        return {"architectures": [self.architecture], "model_type": self.model_type, **written}


def check_keys(hf: HfConfig, known: Sequence[str], what: str) -> None:
    """Refuse keys of `config.json` that match none of the patterns in `known`, nor of those that are harmless anywhere.

    Raises:
        UnsupportedError: There are such keys; lists all.
    """
    unknown = [
        key
        for key, value in hf.items()
        if value is not None and not any(fnmatchcase(key, pattern) for pattern in (*known, *HARMLESS))
    ]
    if unknown:
        raise UnsupportedError(
            f"The keys of config.json must be those that {what} models are known to have, but there is also "
            f"{', '.join(sorted(unknown))}.",
            hint="if they change nothing that the model computes, remove them from config.json",
        )


def modules(names: Mapping[str, str], op: Op | None = None) -> list[Rule]:
    """Rules for the weight and the bias of modules, from our name of each to theirs."""
    return [
        rule(f"{ours}.{kind}", f"{theirs}.{kind}", op) for ours, theirs in names.items() for kind in ("weight", "bias")
    ]


def block(theirs: str, names: Mapping[str, str], op: Op | None = None) -> list[Rule]:
    """`modules` of each decoder block; `theirs` is the path of their blocks."""
    return modules({f"decoder.layers.{{i}}.{name}": f"{theirs}.{{i}}.{other}" for name, other in names.items()}, op)


def fused(theirs: str, name: str, ours: Sequence[str], op: Op) -> list[Rule]:
    """Rules for several of our modules in each decoder block, which are one of theirs."""
    return [
        rule([f"decoder.layers.{{i}}.{one}.{kind}" for one in ours], f"{theirs}.{{i}}.{name}.{kind}", op)
        for kind in ("weight", "bias")
    ]


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
