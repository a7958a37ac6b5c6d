"""`Batch`: the tensors of one micro-batch. The only module of `data` that imports torch.

Shapes: B rows, S source positions, T target positions, F features, M aligned pairs, P examples or parts of examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from onmt_llm.data.batching.collate import BatchArrays


@dataclass(frozen=True)
class Batch:
    """A micro-batch: one example per row, or several if packed; padded on the right.

    Attributes:
        src_BS: Input of the encoder (int64); None for a language model.
        src_mask_BS: True where `src_BS` holds a real token.
        tgt_BT: Input of the decoder (int64).
        labels_BT: labels_BT[b, t] is the token that follows tgt_BT[b, t]; -100 = no loss.
        doc_BT: Number of the document at each position, 0 = padding; None if every row is one document.
        num_targets: Number of trained labels.
        num_examples: Examples in the batch; of an example that is cut into parts, only the first part counts.
        features_BSF: Features of the source tokens (int64); None for a model without features.
        align_M3: Aligned positions (row, label, source) of all rows; None if there are none.
        src_doc_BS: As `doc_BT`, for the source; equal numbers belong together.
        preference_B: Kind of each row: 1 = chosen, 0 = rejected, -1 = an answer to another prompt; None = examples
            without preferences. The k-th chosen and the k-th rejected row of pairs are one example.
        corpus_P2: For each example or part, in row order: the number of its corpus, and its number of trained labels;
            None = only one corpus.
    """

    src_BS: Tensor | None
    src_mask_BS: Tensor | None
    tgt_BT: Tensor
    labels_BT: Tensor
    doc_BT: Tensor | None
    num_targets: int
    num_examples: int
    features_BSF: Tensor | None = None
    align_M3: Tensor | None = None
    src_doc_BS: Tensor | None = None
    preference_B: Tensor | None = None
    corpus_P2: Tensor | None = None

    @classmethod
    def of(cls, arrays: BatchArrays) -> Batch:
        """Convert arrays to tensors."""
        values: dict[str, Any] = {}
        for field in fields(arrays):
            value = getattr(arrays, field.name)
            if hasattr(value, "dtype"):
                value = torch.from_numpy(value)
                value = value if value.dtype == torch.bool else value.long()
            values[field.name] = value
        return cls(**values)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """The same batch in page-locked memory, from which copies to a GPU are asynchronous."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = change(value)
        return replace(self, **moved)
