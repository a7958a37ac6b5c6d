"""Read OpenNMT-py v3 checkpoints: `.pt` files, their `.NN.safetensors` sidecars, and LoRA files.

The file is a pickle. Only tensors, plain data and `argparse.Namespace` (the options) are read from it.

Rows and columns are reordered so that the logits stay the same although the two toolkits compute differently: for
interleaved rotary pairs (`rotary_interleave`), and for interleaved sines and cosines (`SinusoidalInterleaved`), for
which the dimensions of the residual stream are reordered throughout the model.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from onmt_llm.checkpoint.adapters import short_names
from onmt_llm.checkpoint.files.safetensors import SafetensorsSet
from onmt_llm.checkpoint.files.torch_pickle import TorchTensors, load_torch
from onmt_llm.checkpoint.formats.foreign import pickled
from onmt_llm.checkpoint.formats.imported import NUMBERS, ImportedModel, ImportedTokenizer, ImportOptions, TypedSource
from onmt_llm.checkpoint.formats.opennmt.options import (
    EMBEDDING,
    POSITIONS,
    OpenNMTOptions,
    alignment,
    feature_tokens,
    model_config,
)
from onmt_llm.checkpoint.formats.opennmt.rules import Layout, rules
from onmt_llm.checkpoint.formats.opennmt.text import stored_frame
from onmt_llm.checkpoint.formats.rules import check_sizes
from onmt_llm.checkpoint.formats.tokenizer_files import fit
from onmt_llm.config.checkpoint import AdapterSpec, SequenceTokens, SpecialTokens, TokenizerSpec
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.log import logger
from onmt_llm.nn.transformer import parameter_shapes
from onmt_llm.text.vocab import Vocab

BLANK = "<blank>"


def find_opennmt(path: Path) -> Path | None:
    """The `.pt` file at `path`, given with or without its ending."""
    candidates = (path, Path(f"{path}.pt"))
    return next((file for file in candidates if file.suffix == ".pt" and file.is_file()), None)


def open_opennmt(path: Path, wanted: ImportOptions) -> ImportedModel:
    """Open an OpenNMT-py v3 model or LoRA file.

    Args:
        path: The file, with or without `.pt`.
        wanted: A subword model, since the path in the checkpoint is not used; a vocabulary that replaces the target's.

    Raises:
        CheckpointError: The file is refused, damaged or incomplete.
        UnsupportedError: The architecture or quantisation is not supported.
    """
    file = find_opennmt(path)
    if file is None:
        raise CheckpointError(f"There is no OpenNMT-py checkpoint at {path} or {path}.pt.")
    content = load_torch(file, allowed=[argparse.Namespace])
    options, vocab = _sections(file, content)
    source = _source(file, content)
    is_lora = any(".lora_A" in name for name in source.names())
    _refuse_quantised(file, source)
    config = model_config(options, vocab, source, is_lora=is_lora)
    check_sizes(config, source, file, rows=not is_lora)
    _log_step(content.get("optim"))
    layout = Layout.of(options, config, source)
    imported = ImportedModel(
        origin=f"OpenNMT-py {'LoRA' if is_lora else 'model'}, {file.name}",
        model=config,
        source=source,
        rules=rules(config, layout),
        ignore=_ignored(config),
        tokenizer=_tokenizer(options, vocab, config, wanted),
        alignment=alignment(options),
    )
    if is_lora:
        _make_adapter(imported, options)
    return imported


def _ignored(config: ModelConfig) -> list[str]:
    """Tensors to skip: computed tables, second copies of tied matrices, a bias of zeros."""
    nothing = {
        f"*.{POSITIONS}": config.position != "learned",
        "generator.weight": config.tie_embeddings,
        "generator.bias": not config.lm_head_bias,
        f"encoder.{EMBEDDING}.weight": config.share_embeddings,
    }
    return [pattern for pattern, holds in nothing.items() if holds]


def _sections(file: Path, content: object) -> tuple[OpenNMTOptions, Mapping[str, Any]]:
    """Options and vocabulary in the pickled dictionary."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must hold a dictionary, but holds a {type(content).__name__}.")
    missing = [key for key in ("opt", "vocab") if content.get(key) is None]
    if missing:
        other = pickled(content)
        raise CheckpointError(
            f"{file} must be an OpenNMT-py checkpoint, but has no {' and no '.join(missing)}"
            f"{f': it is {other}' if other else ''}.",
            hint="weights of other programs are read from a folder with their description, such as config.json",
        )
    vocab = content["vocab"]
    if not isinstance(vocab, dict) or not isinstance(vocab.get("tgt", vocab.get("src")), list):
        raise CheckpointError(
            f"{file} must hold its vocabulary as lists of tokens, but does not.",
            hint="OpenNMT-py 2 files: convert them to v3 there",
        )
    opt = content["opt"]
    return OpenNMTOptions(vars(opt) if isinstance(opt, argparse.Namespace) else dict(opt)), vocab


def _log_step(optim: object) -> None:
    """Say that a run from the converted checkpoint starts at step 0, with a new optimiser."""
    step = optim.get("training_step") if isinstance(optim, dict) else None
    if step:
        logger.info(
            "Step %s and the optimiser's state are not converted: a run from it starts at step 0 of its schedule.",
            f"{step - 1:,}",
        )


def _source(file: Path, content: Mapping[str, Any]) -> TypedSource:
    """The tensors, from the pickle or from safetensors files beside it."""
    if content.get("model") is not None:
        tensors = {_current_name(name): tensor for name, tensor in content["model"].items()}
        for name, tensor in (content.get("generator") or {}).items():
            tensors[f"generator.{name.removeprefix('0.')}"] = tensor
        strange = [name for name, tensor in tensors.items() if not isinstance(tensor, torch.Tensor)]
        if strange:
            raise CheckpointError(f"`model` in {file} must hold only tensors, but {strange[0]} is not one.")
        return TorchTensors(tensors)
    stem = file.with_suffix("")
    sidecars = [
        f.name for f in file.parent.iterdir() if re.fullmatch(re.escape(stem.name) + r"(\.\d+)?\.safetensors", f.name)
    ]
    if not sidecars:
        raise CheckpointError(f"{file} holds no weights, and there is no {stem.name}.00.safetensors beside it.")
    return SafetensorsSet(file.parent, sidecars)


def _current_name(name: str) -> str:
    """The current name: the first versions called the parameters of norms a_2 and b_2."""
    return re.sub(r"\.a_2$", ".weight", re.sub(r"\.b_2$", ".bias", name))


def _refuse_quantised(file: Path, source: TypedSource) -> None:
    coded = [name for name in source.names() if source.dtype(name) not in NUMBERS]
    if coded:
        raise UnsupportedError(
            f"{file} holds quantised weights ({coded[0]} and {len(coded) - 1} more), which cannot be imported.",
            hint="convert the full-precision model",
        )


def _tokenizer(
    options: OpenNMTOptions, vocab: Mapping[str, Any], config: ModelConfig, wanted: ImportOptions
) -> ImportedTokenizer:
    start = vocab.get("decoder_start_token", "<s>")
    target = list(vocab["tgt"])
    specials = SpecialTokens(
        unk="<unk>" if "<unk>" in target else None,
        bos=start or None,
        eos="</s>" if "</s>" in target else None,
        pad=BLANK if BLANK in target else None,
        add_bos=bool(start),
    )
    if wanted.vocab_file is not None:
        replacement = Vocab.read(wanted.vocab_file, specials)
        target = [replacement[i] for i in range(len(replacement))]
    source = list(vocab["src"])
    tokenizer = ImportedTokenizer(tokens=fit(target, config.vocab_size), specials=specials)
    if not config.is_decoder_only and source != list(vocab["tgt"]):
        tokenizer.src_tokens = fit(source, config.encoder_vocab_size)
    features = zip(feature_tokens(vocab), config.src_features, strict=False)
    tokenizer.feature_tokens = [fit(tokens, feature.vocab_size) for tokens, feature in features]
    if tokenizer.feature_tokens:
        tokenizer.feature_defaults = options.get("src_feats_defaults", None)
    if not config.is_decoder_only:
        tokenizer.sequences = _sequences(options, start, {"src": set(source), "tgt": set(target)})
    _set_tokenizer(tokenizer, options, wanted, lm=config.is_decoder_only)
    return tokenizer


def _sequences(options: OpenNMTOptions, start: str, known: Mapping[str, Collection[str]]) -> SequenceTokens:
    """Tokens around a text that the transforms `prefix` and `suffix` add, unless each corpus has its own."""
    given = {name: options.get(name, "") for name in ("src_prefix", "src_suffix", "tgt_prefix")}
    around = stored_frame(list(options.get("transforms", ())), given, known)
    forced = around.pop("tgt_prefix", [])
    return SequenceTokens(**around, decoder_start=[start, *forced] if forced else [])


def _set_tokenizer(tokenizer: ImportedTokenizer, options: OpenNMTOptions, wanted: ImportOptions, *, lm: bool) -> None:
    """The tokenisers of both sides; a language model has that of the source alone.

    Raises:
        CheckpointError: The sides have different subword models, and only one is given.
    """
    transforms = options.get("transforms", None) or sorted(options.get("_all_transform", ()))
    kinds = [kind for kind in ("sentencepiece", "bpe", "onmt_tokenize") if kind in transforms]
    kind = kinds[0] if kinds else "sentencepiece"
    model, src_model = wanted.tokenizer_model, wanted.src_tokenizer_model
    src, tgt = (options.get(f"{side}_subword_model", None) for side in ("src", "tgt"))
    named = [src or tgt] if lm or not (src and tgt) or src == tgt else [src, tgt]
    if model is None:
        if kinds:
            where = f" (it was {' and '.join(named)})" if named[0] else ""
            flags = "-tokenizer_model" if len(named) == 1 else "-src_tokenizer_model and -tokenizer_model"
            logger.warning(
                "The checkpoint was trained with %s%s; pass its model with %s to store it.", kind, where, flags
            )
        if kind != "onmt_tokenize":
            return
    elif kinds and len(named) > 1 and src_model is None:
        raise CheckpointError(
            f"The checkpoint was trained with two subword models, {src} for sources and {tgt} for targets, so both "
            "must be given, but only one is.",
            hint="-src_tokenizer_model SOURCE_MODEL -tokenizer_model TARGET_MODEL",
        )
    tokenizer.spec = _spec(tokenizer, options, kind, ("src" if lm else "tgt"), model)
    other = _spec(tokenizer, options, kind, "src", src_model or model)
    tokenizer.src_spec = None if lm or other == tokenizer.spec else other


def _spec(
    tokenizer: ImportedTokenizer, options: OpenNMTOptions, kind: str, side: str, model: Path | None
) -> TokenizerSpec:
    """The tokeniser of a side, whose model is kept beside the weights."""
    settings: dict[str, Any] = {}
    if kind == "onmt_tokenize":
        settings = _literal_mapping(options.get(f"{side}_onmttok_kwargs", None) or "{'mode': 'none'}")
        subword = options.get(f"{side}_subword_type", None) or "none"
        if model is not None and subword != "none":
            settings["subword_type"] = subword
        if options.get("gpt2_pretok", False):
            settings["gpt2_pretok"] = True
    name = None
    if model is not None:
        is_other = tokenizer.files.get(model.name, model) != model
        name = f"{side}_{model.name}" if is_other else model.name
        tokenizer.files[name] = model
    return TokenizerSpec.model_validate({"kind": kind, "file": name, "options": settings})


def _literal_mapping(text: object) -> dict[str, Any]:
    """Parse `{'mode': 'space'}`, which OpenNMT-py evaluates as code; here only literals are allowed."""
    if isinstance(text, dict):
        return dict(text)
    try:
        value = ast.literal_eval(str(text))
    except (ValueError, SyntaxError) as error:
        raise CheckpointError(
            f"The tokeniser options of the checkpoint must be a literal mapping, but are {text!r}."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"The tokeniser options of the checkpoint must be a mapping, but are {text!r}.")
    return {str(key): item for key, item in value.items() if item is not None}


def _make_adapter(imported: ImportedModel, options: OpenNMTOptions) -> None:
    """Turn an opened LoRA file into an adapter: set its settings and the expected shapes."""
    source = imported.source
    biases = [name for name in source.names() if name.endswith(".bias")]
    if biases:
        raise UnsupportedError(f"The LoRA file holds trained biases ({biases[0]} ...), which an adapter cannot hold.")
    if (
        options.get("override_opts", False)
        and imported.model.position == "rotary"
        and not options.get("rotary_interleave", True)
    ):
        logger.warning(
            "The LoRA file has rotary_interleave: false, but was trained with override_opts, which resets that "
            "option. If its base has rotary_interleave: true, q_proj and k_proj will be wrong."
        )
    here = set(source.names())
    parts = [one for one in imported.rules if one.ours[0].endswith((".lora_a", ".lora_b")) and one.theirs[0] in here]
    layers = sorted({one.ours[0].rpartition(".")[0] for one in parts})
    rank = int(options.require("lora_rank"))
    imported.expected = _adapter_shapes(imported.model, layers, rank)
    imported.adapter = AdapterSpec(
        rank=rank,
        alpha=float(options.get("lora_alpha", 1)),
        dropout=float(options.get("lora_dropout", 0.0)),
        layers=short_names(
            [layer for layer in layers if not layer.endswith("embed_tokens")], parameter_shapes(imported.model)
        ),
        embedding=any(layer.endswith("embed_tokens") for layer in layers),
        base=str(options.get("train_from", "")),
        base_fingerprint="",
        quant_layers=[],
    )


def _adapter_shapes(config: ModelConfig, layers: list[str], rank: int) -> dict[str, tuple[int, ...]]:
    weights = parameter_shapes(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        rows, columns = weights[f"{layer}.weight"]
        if layer.endswith("embed_tokens"):
            rows, columns = columns, rows
        shapes[f"{layer}.lora_a"], shapes[f"{layer}.lora_b"] = (rank, columns), (rows, rank)
    return shapes
