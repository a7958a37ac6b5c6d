"""Check that the transforms of a corpus fit the way it is read and the features of its words."""

from __future__ import annotations

from collections.abc import Sequence

from onmt_llm.data.readers import Reader, ShuffledReader
from onmt_llm.data.transforms.transform import Transform, transform_class
from onmt_llm.errors import ConfigError
from onmt_llm.text.codec import Codec


def check_features(corpus: str, transforms: Sequence[str], count: int, codec: Codec) -> None:
    if count != len(codec.feature_vocabs):
        raise ConfigError(
            f"n_src_feats must be the number of source features of the model, {len(codec.feature_vocabs)}, "
            f"but is {count}."
        )
    if count and "inferfeats" not in transforms:
        raise ConfigError(
            f"The transforms of corpus '{corpus}' must include inferfeats, behind the tokeniser, since n_src_feats is "
            f"{count}."
        )
    rewriting = next((name for name in transforms if transform_class(name).rewrites), None)
    if count and rewriting:
        raise ConfigError(
            f"The transforms of corpus '{corpus}' must leave its words in their places, since they carry features "
            f"(n_src_feats {count}), but {rewriting} does not."
        )


def check_order(corpus: str, reader: Reader, transforms: Sequence[Transform]) -> None:
    joining = next((transform.name for transform in transforms if transform.needs_neighbours), None)
    if joining and isinstance(reader, ShuffledReader):
        raise ConfigError(
            f"Corpus '{corpus}' must be read in order, since its transform '{joining}' joins successive lines, but "
            "shuffle is 'global'.",
            hint="shuffle: none, for this corpus",
        )
