"""Convert other toolkits' models to checkpoints, with one rule's tensors in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import torch
from pydantic import ValidationError

from onmt_llm.atomic import check_output
from onmt_llm.checkpoint.files.blocks import nbytes
from onmt_llm.checkpoint.formats.imported import (
    NOTHING_ASKED,
    ImportedModel,
    ImportedTokenizer,
    ImportOptions,
    TypedSource,
)
from onmt_llm.checkpoint.formats.rules import apply
from onmt_llm.checkpoint.formats.tokenizer_files import NO_TOKENIZER
from onmt_llm.checkpoint.progress import TensorProgress
from onmt_llm.checkpoint.provenance import copy_provenance
from onmt_llm.checkpoint.sources import SOURCES, detect
from onmt_llm.checkpoint.store import CheckpointWriter
from onmt_llm.config.checkpoint import CheckpointConfig
from onmt_llm.config.model import Dtype
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.log import logger
from onmt_llm.nn.device import DTYPES
from onmt_llm.nn.transformer import parameter_shapes
from onmt_llm.text.codec import FEATURE_VOCAB_FILE, SRC_VOCAB_FILE, VOCAB_FILE
from onmt_llm.text.vocab import Vocab


def convert(
    model_dir: str | Path,
    output: str | Path,
    *,
    source: str = "auto",
    tokenizer_model: str | Path | None = None,
    src_tokenizer_model: str | Path | None = None,
    vocab_file: str | Path | None = None,
    ignore_unknown: bool = False,
    dtype: str | None = None,
    shard_size: str | int = "5GB",
    overwrite: bool = False,
) -> Path:
    """Convert another toolkit's model into a checkpoint.

    Args:
        model_dir: Directory (or file) with the model.
        output: The checkpoint directory to write, under exactly this name.
        source: A name in `SOURCES`, or "auto".
        tokenizer_model: Tokeniser file, if it is not beside the model; "none" = convert the weights alone.
        src_tokenizer_model: That of the source side, if it is another (OpenNMT-py).
        vocab_file: Vocabulary file, if the tokeniser does not define the vocabulary.
        ignore_unknown: Log keys of the model's configuration that are not known, instead of refusing them.
        dtype: "fp32", "bf16" or "fp16"; None = as in the source (quantised sources become fp32).
        shard_size: Bytes per weight file, e.g. "5GB".
        overwrite: Replace a checkpoint at `output`.

    Returns:
        `output`.

    Raises:
        CheckpointError: The model is incomplete or damaged, or the output exists.
        UnsupportedError: The model computes something that `Transformer` does not.
    """
    output = Path(output)
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, but is '{dtype}'.")
    check_output(output, overwrite=overwrite)
    options = ImportOptions(
        tokenizer_model=None if tokenizer_model is None else Path(tokenizer_model),
        src_tokenizer_model=None if src_tokenizer_model is None else Path(src_tokenizer_model),
        vocab_file=None if vocab_file is None else Path(vocab_file),
        ignore_unknown=ignore_unknown,
    )
    imported = open_imported(model_dir, source=source, options=options)
    config = checkpoint_config(imported, dtype)
    expected = imported.expected or parameter_shapes(imported.model)
    sizes = [nbytes(DTYPES[config.model.dtype], shape) for shape in expected.values()]
    with (
        CheckpointWriter(output, config, shard_size=shard_size, overwrite=overwrite) as writer,
        TensorProgress("convert", sizes) as progress,
    ):
        for name, tensor in converted_tensors(imported):
            writer.add(name, tensor, _stored_type(tensor.dtype, config.model.dtype if dtype else None))
            progress.add(nbytes(DTYPES[config.model.dtype], tensor.shape))
            del tensor  # before the next one is read
        write_tokenizer(writer, imported.tokenizer)
        _keep_provenance(Path(model_dir), writer.directory)
    logger.info("%s -> %s (%s)", imported.origin, output, config.model.dtype)
    return output


def _keep_provenance(source: Path, target: Path) -> None:
    """Copy the record of training runs that our own exports have; of another program, a file of this name stays."""
    if source.is_dir():
        try:
            copy_provenance(source, target)
        except CheckpointError as error:
            logger.warning("%s It is left out.", error)


def open_imported(
    model_dir: str | Path,
    *,
    source: str = "auto",
    options: ImportOptions = NOTHING_ASKED,
) -> ImportedModel:
    """Open another toolkit's model without reading its weights; see `convert` for the arguments."""
    path = Path(model_dir)
    if source not in ("auto", *SOURCES):
        raise ConfigError(f"The source format must be one of auto, {', '.join(SOURCES)}, but is '{source}'.")
    name = detect(path) if source == "auto" else source
    if options.tokenizer_model == NO_TOKENIZER and SOURCES[name].has_text:
        raise ConfigError(f"tokenizer_model cannot be 'none' for a model that holds its vocabulary ({name}).")
    if options.src_tokenizer_model is not None and (name != "opennmt" or options.tokenizer_model is None):
        raise ConfigError(
            "src_tokenizer_model needs tokenizer_model and a model of OpenNMT-py, but one of them is missing."
        )
    try:
        return SOURCES[name].open(path, options)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'model'}: {e['msg']}" for e in error.errors())
        raise CheckpointError(f"{path} describes an impossible model: {problems}.") from error
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} describes its model with values of the wrong type ({error}).") from error


def checkpoint_config(imported: ImportedModel, dtype: str | None) -> CheckpointConfig:
    """Content of config.yaml; its dtype is the requested one, or that of most of the source's weights."""
    stored = dtype or _main_dtype(imported.source)
    return CheckpointConfig(
        model=imported.model.model_copy(update={"dtype": stored}),
        src_feats_defaults=imported.tokenizer.feature_defaults,
        tokenizer=imported.tokenizer.spec,
        src_tokenizer=imported.tokenizer.src_spec,
        specials=imported.tokenizer.specials,
        sequences=imported.tokenizer.sequences,
        languages=imported.tokenizer.languages,
        template=imported.tokenizer.template,
        stop_tokens=imported.tokenizer.stop_tokens,
        banned_tokens=imported.tokenizer.banned_tokens,
        sampling=imported.sampling,
        adapter=imported.adapter,
        source=imported.origin,
        **imported.alignment,
    )


def converted_tensors(imported: ImportedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The imported model's tensors under our names, one at a time.

    Raises:
        CheckpointError: Tensors are missing, unused or misshaped; lists all, before reading any.
    """
    expected = imported.expected or parameter_shapes(imported.model)
    return apply(imported.rules, imported.source, expected, ignore=imported.ignore, what=imported.origin)


def _stored_type(found: torch.dtype, wanted: Dtype | None) -> torch.dtype:
    """The type in which a tensor is stored: as it is, if none is wanted and there is a `Dtype` for it."""
    return found if wanted is None and found in DTYPES.values() else DTYPES[wanted or "fp32"]


def _main_dtype(source: TypedSource) -> Dtype:
    """The type of most weights; types without a `Dtype` count as float32."""
    words = {dtype: word for word, dtype in DTYPES.items()}
    sizes: Counter[Dtype] = Counter()
    for name in source.names():
        word: Dtype = words.get(source.dtype(name), "fp32")
        sizes[word] += torch.Size(source.shape(name)).numel()
    return sizes.most_common(1)[0][0] if sizes else get_args(Dtype)[0]


def write_tokenizer(writer: CheckpointWriter, tokenizer: ImportedTokenizer) -> None:
    """Write vocabulary, tokeniser and template beside the weights."""
    Vocab(tokenizer.tokens, tokenizer.specials).write(writer.directory / VOCAB_FILE)
    if tokenizer.src_tokens is not None:
        Vocab(tokenizer.src_tokens, tokenizer.specials).write(writer.directory / SRC_VOCAB_FILE)
    for i, tokens in enumerate(tokenizer.feature_tokens):
        Vocab(tokens, tokenizer.specials).write(writer.directory / FEATURE_VOCAB_FILE.format(i=i))
    for name, file in tokenizer.files.items():
        writer.add_file(file, name)
    for name, content in tokenizer.blobs.items():
        (writer.directory / name).write_bytes(content)
