"""The keys of `config.json` and of its like in other formats: which are known, and the name of the file in messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from onmt_llm.errors import UnsupportedError
from onmt_llm.log import logger

HARMLESS = (
    # names, versions, types
    *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "model_type", "dtype"),
    *("torch_dtype", "tokenizer_class", "transformers.js_config", "unsloth_*", "task_specific_params"),
    # answered by `read` and `quantized`
    *("architectures", "auto_map", "quantization_config", "compression_config", "quantization"),
    # token ids
    *("*_token_id", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "prefix"),
    # training
    *("initializer_range", "*dropout", "*_pdrop", "gradient_checkpointing"),
    # what a call returns, and how it is computed
    *("return_dict*", "use_return_dict", "output_attentions", "output_hidden_states", "output_past"),
    *("output_scores", "use_cache", "cache_implementation", "chunk_size_feed_forward", "use_bfloat16"),
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


class Settings(dict[str, Any]):
    """The settings of a file that is not `config.json`; messages name it."""

    def __init__(self, values: Mapping[str, Any], *, file: str) -> None:
        super().__init__(values)
        self.file = file


def file_name(config: Mapping[str, Any]) -> str:
    """The file that a configuration is from."""
    return config.file if isinstance(config, Settings) else "config.json"


def check_keys(hf: Mapping[str, Any], known: Sequence[str], what: str, *, ignore_unknown: bool = False) -> None:
    """Refuse keys of `config.json` that match none of the patterns in `known`, nor of those that are harmless anywhere.

    Args:
        hf: The configuration.
        known: Patterns of keys that are read, or that change nothing.
        what: The kind of models, in words.
        ignore_unknown: Log such keys and continue.

    Raises:
        UnsupportedError: There are such keys; lists all.
    """
    unknown = [
        key
        for key, value in hf.items()
        if value is not None and not any(fnmatchcase(key, pattern) for pattern in (*known, *HARMLESS))
    ]
    names = ", ".join(sorted(unknown))
    if unknown and ignore_unknown:
        logger.warning("Keys of %s are ignored, as -ignore_unknown says: %s.", file_name(hf), names)
    elif unknown:
        raise UnsupportedError(
            f"The keys of {file_name(hf)} must be those that {what} models are known to have, but there is also "
            f"{names}.",
            hint="if they change nothing that the model computes, -ignore_unknown converts it without them",
        )
