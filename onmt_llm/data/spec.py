"""`PipelineSpec`: corpora, options and codec; all that a process needs to prepare batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onmt_llm.config.data import BatchConfig, CorpusConfig, DataConfig
from onmt_llm.config.task import is_for_validation
from onmt_llm.data.parsing.loss_mask import LossMask
from onmt_llm.errors import ConfigError
from onmt_llm.text.codec import Codec
from onmt_llm.text.vocab import Vocab


@dataclass(frozen=True)
class PipelineSpec:
    """What happens to which corpora; it can be pickled.

    Attributes:
        corpora: Corpora by name.
        data: Options of all corpora.
        codec: Text side of the model that they are prepared for.
        seed: Seed of the order of batches and of random transforms.
        training: With random transforms, packing, and batches in random order.
        batching: How examples become batches.
        text_only: Apply only the transforms before the tokeniser.
        without: Names of transforms to leave out.

    Raises:
        ConfigError: Batching options are incompatible.
    """

    corpora: Mapping[str, CorpusConfig]
    data: DataConfig
    codec: Codec
    seed: int = 0
    training: bool = True
    batching: BatchConfig = field(default_factory=BatchConfig)
    text_only: bool = False
    without: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        batching = self.batching
        if batching.packing != "off" and self.data.objective != "sft":
            raise ConfigError(
                f"packing must be off with objective: {self.data.objective}, but is '{batching.packing}': chosen and "
                "rejected answers need rows of their own."
            )
        if batching.packing in ("split", "wrap") and self.codec.task == "seq2seq":
            raise ConfigError(
                f"packing must be 'off' or 'pack' for an encoder-decoder, but is '{batching.packing}': a target that "
                "is cut has no source of its own."
            )
        if batching.packing != "off" and batching.packing_length is None and batching.batch_type == "sents":
            raise ConfigError(
                "packing_length must be given with batch_type 'sents', where batch_size counts rows, but is not."
            )

    def loss_mask(self, name: str) -> LossMask:
        """The parts of a corpus' conversations that are trained."""
        return LossMask.of(self.data, self.corpora[name])

    @property
    def batch_size(self) -> int:
        return self.batching.batch_size if self.training else self.batching.valid_batch_size

    @property
    def bucket_size(self) -> int:
        """Records per bucket: at least those of one batch."""
        batching = self.batching
        return max(batching.bucket_size, self.batch_size) if batching.batch_type == "sents" else batching.bucket_size

    @property
    def room_option(self) -> str:
        """The option that limits the tokens of a batch or a packed row."""
        if not self.training:
            return "valid_batch_size"
        return "packing_length" if self.batching.packing != "off" and self.batching.packing_length else "batch_size"

    @property
    def row_length(self) -> int:
        """Positions of a packed row."""
        return self.batching.packing_length or self.batch_size

    @property
    def pad_ids(self) -> tuple[int, int]:
        """Padding ids of targets and sources."""
        return _pad_id(self.codec.vocab), _pad_id(self.codec.src_vocab)


def split_corpora(corpora: Mapping[str, CorpusConfig]) -> tuple[dict[str, CorpusConfig], dict[str, CorpusConfig]]:
    """Corpora for training, and those for validation: `valid` and `valid_*`.

    Raises:
        ConfigError: There is none for training.
    """
    valid = {name: corpus for name, corpus in corpora.items() if is_for_validation(name)}
    train = {name: corpus for name, corpus in corpora.items() if name not in valid}
    if not train:
        raise ConfigError(
            "`data` must name at least one corpus for training, but names "
            + (f"only {', '.join(valid)}, for validation." if valid else "none.")
        )
    return train, valid


def _pad_id(vocab: Vocab) -> int:
    """The id of padding; masked in model and loss, so any id will do if the vocabulary has none."""
    return vocab.pad_id if vocab.pad_id is not None else vocab.eos_id or 0
