"""The mean of the weights of several checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onmt_llm.checkpoint.load import resolve_dtype
from onmt_llm.checkpoint.merge import copy_files
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.model import Dtype
from onmt_llm.errors import CheckpointError
from onmt_llm.text.codec import Codec


def average(
    checkpoints: Sequence[str | Path],
    output: str | Path,
    *,
    dtype: Dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """The mean of the weights of several checkpoints of one model, computed in float32, one tensor at a time.

    Vocabulary, tokeniser and template are copied from the first.

    Args:
        checkpoints: Checkpoint directories.
        output: The checkpoint to write.
        dtype: Type of the mean; None = as in the first checkpoint.
        overwrite: Replace a checkpoint at `output`.

    Raises:
        CheckpointError: Their architectures or vocabularies differ, or one is an adapter (the mean of A and B is
            meaningless).
    """
    opened = [Checkpoint.open(path) for path in checkpoints]
    if not opened:
        raise CheckpointError("Averaging needs at least one checkpoint, but got none.")
    first = opened[0]
    for other in opened:
        if other.has_adapter:
            raise CheckpointError(
                f"{other.path} holds a {other.config.noun}, which cannot be averaged.", hint="merge it first"
            )
        if _architecture(other) != _architecture(first):
            raise CheckpointError(f"{other.path} must have the same architecture as {first.path}, but has another.")
        if vocabularies(other.codec()) != vocabularies(first.codec()):
            raise CheckpointError(
                f"{other.path} must have the same vocabulary as {first.path}, but has another: a row of its embedding "
                "belongs to another token."
            )
    model = first.config.model.model_copy(update={"dtype": dtype or first.config.model.dtype})
    source = f"mean of {', '.join(other.path.name for other in opened)}"
    config = first.config.model_copy(update={"model": model, "source": source})
    with CheckpointWriter(output, config, overwrite=overwrite) as writer:
        for name in first.model_names():
            total = first.tensor(name).float()
            for other in opened[1:]:
                total += other.tensor(name).float()
            stored = first.dtype(name) if dtype is None else resolve_dtype(dtype, model.dtype)
            writer.add(name, (total / len(opened)).to(stored))
        copy_files(writer, first)
    return Path(output)


def vocabularies(codec: Codec) -> list[list[str]]:
    """The tokens of the target side, of the source side and of its features, in the order of their ids."""
    return [list(vocab) for vocab in (codec.vocab, codec.src_vocab, *codec.feature_vocabs)]


def _architecture(checkpoint: Checkpoint) -> object:
    """What checkpoints must have in common to be averaged; their number formats may differ."""
    config = checkpoint.config.model.model_copy(update={"dtype": "fp32"})
    return config, {name: checkpoint.shape(name) for name in checkpoint.model_names()}
