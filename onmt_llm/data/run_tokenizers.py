"""The tokenisers that a run's options name, beside those that its model has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onmt_llm.config.checkpoint import CheckpointConfig, TokenizerSpec, is_own_file
from onmt_llm.config.data import DataConfig
from onmt_llm.data.transforms.subword import tokenizer_specs
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.log import logger
from onmt_llm.text.codec import SRC_VOCAB_FILE, VOCAB_FILE

TEMPLATE_FILE = "chat_template.jinja"


def run_tokenizer_specs(data: DataConfig, *, lm: bool) -> tuple[TokenizerSpec | None, TokenizerSpec | None]:
    """Tokenisers of source and target that the transforms name; a language model has that of the source alone."""
    src_spec, tgt_spec = tokenizer_specs(data)
    return (None, src_spec) if lm else (src_spec, tgt_spec)


def check_tokenizers(
    specs: tuple[TokenizerSpec | None, TokenizerSpec | None],
    stored: CheckpointConfig,
    files: Mapping[str, bytes],
    path: str | Path,
    *,
    hint: str,
) -> None:
    """Refuse another tokeniser than the model's.

    A tokeniser of another kind, or with other options, may give the same pieces (a tokenizer.json of a SentencePiece
    model): a warning.

    Args:
        specs: The tokenisers of source and target that the options name; None = the model's.
        stored: The model's `config.yaml`.
        files: Content of its files, by name.
        path: The model, for messages.
        hint: What to do besides naming the model's tokeniser.

    Raises:
        ConfigError: A tokeniser of the same kind has another model, or the model has none.
    """
    for named, mine in other_tokenizers(specs, stored, files):
        source = named.file or named.options
        if splits_at_spaces(stored):
            raise ConfigError(
                f"The tokeniser must be that of {path}, which splits texts at spaces, but the options name "
                f"{named.kind} ({source}).",
                hint=hint,
            )
        if (named.kind, named.options) == (mine.kind, mine.options):
            raise ConfigError(
                f"The tokeniser must be that of {path}, {mine.file or mine.kind}, but {source} has other content.",
                hint=hint,
            )
        logger.warning(
            "The options tokenise by %s (%s), but %s by %s: both must give the same tokens.",
            *(named.kind, source, path, mine.kind),
        )


def other_tokenizers(
    specs: tuple[TokenizerSpec | None, TokenizerSpec | None], stored: CheckpointConfig, files: Mapping[str, bytes]
) -> Iterator[tuple[TokenizerSpec, TokenizerSpec]]:
    """The tokenisers of source and target that the options name and that are not the model's, each with the model's."""
    own = (stored.src_tokenizer or stored.tokenizer, stored.tokenizer)
    for named, mine in zip(specs, own, strict=True):
        if named is None:
            continue
        content = None if named.file is None else file_content(Path(named.file))
        same = (named.kind, named.options) == (mine.kind, mine.options)
        if not same or content != (None if mine.file is None else files[mine.file]):
            yield named, mine


def splits_at_spaces(config: CheckpointConfig) -> bool:
    """Whether a model has no tokeniser of its own: its texts are tokens with spaces between them."""
    return config.tokenizer.kind == "whitespace" and config.src_tokenizer is None


def tokenizer_update(
    config: CheckpointConfig, files: dict[str, bytes], src_spec: TokenizerSpec | None, tgt_spec: TokenizerSpec
) -> dict[str, Any]:
    """The entries of config.yaml for these tokenisers, whose files replace those of the model in `files`."""
    for spec in (config.tokenizer, config.src_tokenizer):
        files.pop((spec and spec.file) or "", None)
    return {
        "tokenizer": stored_spec(tgt_spec, "", files),
        "src_tokenizer": None if src_spec in (None, tgt_spec) else stored_spec(src_spec, "src_", files),
    }


def stored_spec(spec: TokenizerSpec | None, prefix: str, files: dict[str, bytes]) -> TokenizerSpec:
    """`spec` with its file beside the checkpoint's weights; the file is added to `files`."""
    if spec is None:
        return TokenizerSpec()
    if spec.file is None:
        return spec
    name = prefix + Path(spec.file).name
    while name in files or is_own_file(name) or name in (VOCAB_FILE, SRC_VOCAB_FILE, TEMPLATE_FILE):
        name = f"tokenizer_{name}"
    files[name] = file_content(Path(spec.file))
    return spec.model_copy(update={"file": name})


def file_content(file: Path) -> bytes:
    """Content of a file that belongs to a model.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} belongs to the model, but cannot be read ({error.strerror or error}).") from error
