"""The text side of an exported checkpoint: subword models, and the tokens around its sequences.

An OpenNMT-py checkpoint stores the token that all targets start with. Other tokens around a text come from the
transforms `suffix` and `prefix`, in this order, whose options are given with every run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.formats.opennmt.vocab import start_token
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import TokenizerSpec
from onmt_llm.log import logger
from onmt_llm.text.codec import Codec
from onmt_llm.text.languages import PLACES

KINDS = ("sentencepiece", "bpe", "onmt_tokenize")
"""Tokenisers that OpenNMT-py runs, as it calls their transforms."""


def stored_frame(
    transforms: Sequence[str], given: Mapping[str, object], known: Mapping[str, Collection[str]]
) -> dict[str, list[str]]:
    """The tokens that `prefix` and `suffix` add to those of every text, unless each corpus has its own.

    Args:
        transforms: In their order. What is added before the tokeniser is text, which is left out with a warning.
        given: Options `src_prefix`, `src_suffix` and `tgt_prefix`, as far as they are set.
        known: The vocabularies, by side.
    """
    tokenised = max((place for place, name in enumerate(transforms) if name in KINDS), default=-1)
    found = {}
    for option, value in given.items():
        side, _, name = option.partition("_")
        tokens = str(value or "").split()
        if name not in transforms or not tokens:
            continue
        if transforms.index(name) > tokenised and all(token in known[side] for token in tokens):
            found[option] = tokens
        else:
            logger.warning("%s is the text '%s': add it to the data, or with the transform %s.", option, value, name)
    return found


def text_obstacles(checkpoint: Checkpoint) -> list[str]:
    """What OpenNMT-py cannot express of the text side, each as `NAME is VALUE` with a reason; empty = nothing."""
    config = checkpoint.config
    found = []
    if config.banned_tokens:
        found.append(f"banned_tokens is {' '.join(config.banned_tokens)}, and OpenNMT-py can ban only <unk>")
    kinds = {side: spec.kind for side, spec in _specs(checkpoint).items()}
    if kinds["src"] != kinds["tgt"]:
        found.append(f"src_tokenizer is of kind {kinds['src']}, and must be of kind {kinds['tgt']} as tokenizer")
    codec = checkpoint.codec()
    begin, around = config.sequences.decoder_start, _around(codec)
    if start_token(codec) in PLACES:
        found.append(
            f"sequences.decoder_start is {' '.join(begin)}, and a language cannot be the first token unless "
            "languages.tgt sets it"
        )
    elif "tgt_prefix" in around and "src_prefix" not in around:
        found.append(
            f"sequences.decoder_start is {' '.join(begin)}, and OpenNMT-py's transform prefix can give a target its "
            "first tokens only if sources have a prefix too"
        )
    return found


def text_options(
    checkpoint: Checkpoint, vocab: Mapping[str, Any], tokenizers: Mapping[str, tuple[Path, Path]]
) -> dict[str, Any]:
    """Options for transforms and vocabulary; subword models are named by their files beside the checkpoint."""
    kind = checkpoint.config.tokenizer.kind
    transforms: list[str] = [kind] if kind in KINDS else []
    if kind == "huggingface":
        logger.warning(
            "OpenNMT-py cannot run the tokeniser %s: give it tokenised text.", checkpoint.config.tokenizer.file
        )
    features: dict[str, Any] = {}
    if "src_feats" in vocab:
        transforms.append("inferfeats")
        features["src_feats_defaults"] = checkpoint.config.src_feats_defaults
    codec = checkpoint.codec()
    tables = {"src": (codec.src_vocab, vocab["src"]), "tgt": (codec.vocab, vocab["tgt"])}
    used = {
        name: " ".join(token if token in PLACES else new[old.id(token)] for token in tokens)
        for name, tokens in _around(codec).items()
        for old, new in [tables[name[:3]]]
    }
    transforms += [name for name in ("suffix", "prefix") if any(option.endswith(name) for option in used)]
    _log_what_runs_must_give(checkpoint, used, transforms)
    return {
        **features,
        "data_task": vocab["data_task"],
        "decoder_start_token": vocab["decoder_start_token"],
        "share_vocab": vocab["src"] == vocab["tgt"],
        "transforms": transforms,
        "_all_transform": set(transforms),
        **_tokenizer_options(checkpoint, tokenizers),
        **{name: text for name, text in used.items() if not any(place in text for place in PLACES)},
    }


def tokenizer_files(checkpoint: Checkpoint, file: Path) -> dict[str, tuple[Path, Path]]:
    """For each side, the subword model and where it goes; empty if OpenNMT-py cannot run it."""
    return {
        side: (checkpoint.path / spec.file, file.with_name(f"{file.stem}.{Path(spec.file).name}"))
        for side, spec in _specs(checkpoint).items()
        if spec.file is not None and spec.kind != "huggingface"
    }


def _specs(checkpoint: Checkpoint) -> dict[str, TokenizerSpec]:
    config = checkpoint.config
    return {"src": config.src_tokenizer or config.tokenizer, "tgt": config.tokenizer}


def _tokenizer_options(checkpoint: Checkpoint, tokenizers: Mapping[str, tuple[Path, Path]]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for side, spec in _specs(checkpoint).items():
        options[f"{side}_subword_model"] = tokenizers[side][1].name if side in tokenizers else None
        if spec.kind == "onmt_tokenize":
            settings = {
                name: value for name, value in spec.options.items() if name not in ("subword_type", "gpt2_pretok")
            }
            options[f"{side}_onmttok_kwargs"] = str(settings)
            options[f"{side}_subword_type"] = spec.options.get("subword_type", "none")
            options["gpt2_pretok"] = bool(spec.options.get("gpt2_pretok", False))
    return options


def _around(codec: Codec) -> dict[str, list[str]]:
    """The tokens that `prefix` and `suffix` add, by option; a language without a default is a place."""
    if codec.task == "lm":
        return {}
    sequences = codec.sequences
    around = {"src_prefix": sequences.src_prefix, "src_suffix": sequences.src_suffix}
    return {name: tokens for name, tokens in {**around, "tgt_prefix": sequences.decoder_start[1:]}.items() if tokens}


def _log_what_runs_must_give(checkpoint: Checkpoint, used: Mapping[str, str], transforms: list[str]) -> None:
    """One warning for what OpenNMT-py does not read from a checkpoint, and one for what it does not have."""
    if used:
        lines = {"transforms": f"[{', '.join(transforms)}]", **{name: f'"{text}"' for name, text in used.items()}}
        if "tgt_prefix" in used:
            lines["tgt_file_prefix"] = "true"
        others = list(checkpoint.config.languages.tokens)
        logger.warning(
            "OpenNMT-py takes the tokens around a text from the options of each run; give onmt_translate %s%s.",
            ", ".join(f"{name}: {text}" for name, text in lines.items()),
            f" (tokens of {len(others)} languages: {', '.join(others[:5])} ...)" if others else "",
        )
    names = [name for name in ("template", "stop", "stop_tokens") if getattr(checkpoint.config, name)]
    if names:
        logger.warning(
            "OpenNMT-py has no %s: a prompt must be laid out, and an answer ended, by you.", ", ".join(names)
        )
