"""Transforms: change, split or drop the examples of a corpus between its file and the batch.

A transform is a class with a `Config` (its options), `build` and `__call__`, registered under the name that users list
in `transforms`. Exactly one transform in a list is the tokeniser: those before it see text, those after it see tokens.
Random numbers are seeded per bucket, so results do not depend on the number of workers.

Read `transform` (the interface) and `build` (lists of transforms), then any of the others. To add a transform, write a
module here and import it below. User plug-ins import `TRANSFORMS`, `Transform` and `TransformContext` from this
package.
"""

from onmt_llm.data.transforms import (
    affix,
    bart,
    chunk,
    clean,
    deduplicate,
    dialogue,
    docify,
    features,
    filters,
    fim,
    fuzzymatch,
    inlinetags,
    mask,
    noise,
    normalize,
    terminology,
    tokenize,
    truncate,
    uppercase,
)
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext

__all__ = [
    "TRANSFORMS",
    "Transform",
    "TransformContext",
    "affix",
    "bart",
    "chunk",
    "clean",
    "deduplicate",
    "dialogue",
    "docify",
    "features",
    "filters",
    "fim",
    "fuzzymatch",
    "inlinetags",
    "mask",
    "noise",
    "normalize",
    "terminology",
    "tokenize",
    "truncate",
    "uppercase",
]
