"""The text side of eole's models: vocab.json, and the tokenisers that `transforms_configs` in config.json names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.formats.eole.settings import section
from onmt_llm.checkpoint.formats.imported import ImportedTokenizer, ImportOptions
from onmt_llm.checkpoint.formats.opennmt.text import stored_frame
from onmt_llm.checkpoint.formats.tokenizer_files import (
    NO_TOKENIZER,
    TEMPLATE_FILE,
    fit,
    from_tokenizer_json,
    read_json,
    set_template,
    without_tokenizer,
)
from onmt_llm.config.checkpoint import SequenceTokens, SpecialTokens, TokenizerSpec
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import CheckpointError
from onmt_llm.log import logger
from onmt_llm.text.vocab import Vocab

HUGGINGFACE = "huggingface_tokenize"
KINDS = (HUGGINGFACE, "sentencepiece", "bpe", "onmt_tokenize")
SPECIALS = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<blank>"}
"""eole's special tokens, in a vocab.json that does not name them."""


def open_text(
    folder: Path, settings: Mapping[str, Any], config: ModelConfig, options: ImportOptions
) -> ImportedTokenizer:
    """Vocabulary, tokenisers, special tokens and template.

    Args:
        folder: The model's.
        settings: The whole of config.json.
        config: The architecture.
        options: A tokeniser that is not in the folder; a vocabulary that replaces the target's.

    Raises:
        CheckpointError: vocab.json is missing or damaged.
    """
    vocab = read_json(folder / "vocab.json")
    for side in ("src", "tgt"):
        if not isinstance(vocab.get(side), list):
            raise CheckpointError(f"{folder / 'vocab.json'} must hold the list `{side}`, but does not.")
    transforms = [name for name in settings.get("transforms") or () if isinstance(name, str)]
    kind = next((name for name in transforms if name in KINDS), "")
    configs = section(settings, "transforms_configs")
    target = fit(vocab["tgt"], config.vocab_size)
    imported = _tokenizer(folder, kind, section(configs, kind), target, options)
    if imported.spec.kind == "huggingface":
        imported.tokens = fit(imported.tokens, config.vocab_size)
    elif not config.is_decoder_only and vocab["src"] != vocab["tgt"]:
        imported.src_tokens = fit(vocab["src"], config.encoder_vocab_size)
    _set_specials(imported, vocab, target)
    if options.vocab_file is not None:
        imported.tokens = fit(list(Vocab.read(options.vocab_file, imported.specials)), config.vocab_size)
    if config.is_decoder_only:
        imported.sequences = SequenceTokens()
    else:
        _set_sequences(imported, transforms, configs)
    if imported.spec.kind != "none":
        _set_chat(imported, folder, section(settings, "inference"))
    return imported


def _tokenizer(
    folder: Path, kind: str, found: Mapping[str, Any], target: Sequence[str], options: ImportOptions
) -> ImportedTokenizer:
    """The tokenisers of both sides, with the target's vocabulary."""
    if options.tokenizer_model == NO_TOKENIZER:
        return without_tokenizer(len(target))
    if kind == HUGGINGFACE:
        file = options.tokenizer_model or _file(folder, found.get("path") or "tokenizer.json")
        if file is None:
            raise CheckpointError(
                f"The tokeniser of {folder} must be in it, but {found.get('path')} is not.",
                hint="name it with -tokenizer_model",
            )
        return from_tokenizer_json(file, file.read_bytes(), None)
    imported = ImportedTokenizer(tokens=list(target))
    if not kind:
        return imported
    sides = {side: _spec(imported, folder, kind, found, side, options.tokenizer_model) for side in ("tgt", "src")}
    imported.spec = sides["tgt"]
    imported.src_spec = None if sides["src"] == sides["tgt"] else sides["src"]
    return imported


def _spec(
    imported: ImportedTokenizer, folder: Path, kind: str, found: Mapping[str, Any], side: str, model: Path | None
) -> TokenizerSpec:
    """The tokeniser of a side; eole uses that of the source for both if there is no other."""

    def stated(name: str) -> Any:
        return found.get(f"{side}_{name}") or found.get(f"src_{name}")

    named = stated("subword_model")
    file = model or (_file(folder, named) if named else None)
    if named and file is None:
        logger.warning("%s is not in %s; pass it with -tokenizer_model to store it.", named, folder)
        if kind != "onmt_tokenize":
            return TokenizerSpec()
    settings: dict[str, Any] = {}
    if kind == "onmt_tokenize":
        kwargs = section(found, f"{side}_onmttok_kwargs") or section(found, "src_onmttok_kwargs") or {"mode": "none"}
        settings = {key: value for key, value in kwargs.items() if value}
        if file is not None and stated("subword_type") not in (None, "none"):
            settings["subword_type"] = stated("subword_type")
        if found.get("gpt2_pretok"):
            settings["gpt2_pretok"] = True
        if found.get("mapped_tokens"):
            logger.warning("mapped_tokens of onmt_tokenize are left out: these tokens are text like any other.")
    if file is not None:
        imported.files[file.name] = file
    return TokenizerSpec.model_validate(
        {"kind": kind, "file": None if file is None else file.name, "options": settings}
    )


def _file(folder: Path, named: object) -> Path | None:
    """The file of that name in the folder, where eole stores it as `${MODEL_PATH}/NAME`, or at that path."""
    places = folder / str(named).replace("\\", "/").rpartition("/")[2], Path(str(named))
    return next((file for file in places if file.is_file()), None)


def _set_specials(imported: ImportedTokenizer, vocab: Mapping[str, Any], target: Sequence[str]) -> None:
    """The roles of special tokens; a token of vocab.json may have another name in a tokenizer.json."""
    stated = section(vocab, "specials") or {f"{role}_token": token for role, token in SPECIALS.items()}
    ids = {token: number for number, token in enumerate(target)}

    def own(token: object) -> str | None:
        return imported.tokens[ids[token]] if isinstance(token, str) and token in ids else None

    start = own(vocab.get("decoder_start_token", SPECIALS["bos"]))
    roles = {role: own(stated.get(f"{role}_token")) for role in SPECIALS}
    imported.specials = SpecialTokens.model_validate({**roles, "bos": start or roles["bos"], "add_bos": bool(start)})


def _set_sequences(imported: ImportedTokenizer, transforms: Sequence[str], configs: Mapping[str, Any]) -> None:
    """Tokens around a text: those that a tokenizer.json adds, and those of the transforms `prefix` and `suffix`."""
    own, start = imported.sequences, imported.specials.bos
    options = {"src_prefix": "prefix", "src_suffix": "suffix", "tgt_prefix": "prefix"}
    given = {option: section(configs, name).get(option) for option, name in options.items()}
    known = {"src": set(imported.src_tokens or imported.tokens), "tgt": set(imported.tokens)}
    # what is added to the ids of a tokenizer.json has no effect in eole
    added = stored_frame([] if HUGGINGFACE in transforms else transforms, given, known)
    forced = added.get("tgt_prefix", [])
    imported.sequences = SequenceTokens(
        src_prefix=[*added.get("src_prefix", []), *own.src_prefix],
        src_suffix=[*own.src_suffix, *added.get("src_suffix", [])],
        decoder_start=[start, *forced] if forced and start else [],
    )


def _set_chat(imported: ImportedTokenizer, folder: Path, inference: Mapping[str, Any]) -> None:
    """The chat template, and the tokens that end an answer besides the end token."""
    known = set(imported.tokens)
    imported.stop_tokens = [token for token in inference.get("optional_eos") or () if token in known]
    file = folder / TEMPLATE_FILE
    text = file.read_text(encoding="utf-8") if file.is_file() else inference.get("chat_template")
    set_template(imported, text if isinstance(text, str) else None)
