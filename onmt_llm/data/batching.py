"""`Batch`: what a model is trained on. The only file of this package that imports torch.

Shapes: B examples, S source positions, T target positions, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onmt_llm.data.encoding import IGNORED, Encoded, Ids


@dataclass(frozen=True)
class Batch:
    """Examples side by side, padded on the right.

    Attributes:
        src_BS: Input of the encoder (int64); None for a language model.
        src_mask_BS: True where `src_BS` holds a real token.
        tgt_BT: Input of the decoder (int64).
        labels_BT: labels_BT[b, t] is the token that follows tgt_BT[b, t]; -100 = no loss.
        doc_BT: Number of the document that each position belongs to, 0 = padding; None where every row is one document.
        num_targets: Labels that the loss counts.
        num_examples: Examples in the batch.
        features_BSF: Features of the source tokens (int64); None for a model without.
    """

    src_BS: Tensor | None
    src_mask_BS: Tensor | None
    tgt_BT: Tensor
    labels_BT: Tensor
    doc_BT: Tensor | None
    num_targets: int
    num_examples: int
    features_BSF: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return Batch(
            move(self.src_BS),
            move(self.src_mask_BS),
            self.tgt_BT.to(device, non_blocking=True),
            self.labels_BT.to(device, non_blocking=True),
            move(self.doc_BT),
            self.num_targets,
            self.num_examples,
            features_BSF=move(self.features_BSF),
        )


def collate(examples: Sequence[Encoded], *, pad_id: int, src_pad_id: int) -> Batch:
    """Put examples side by side.

    Args:
        examples: At least one; all of one task.
        pad_id: Fills `tgt_BT`; any token will do, since no real position attends to what follows it.
        src_pad_id: Fills `src_BS`, where the mask hides it.
    """
    labels_BT = _padded([example.labels for example in examples], IGNORED)
    sources = [example.src for example in examples if example.src is not None]
    features = [example.features for example in examples if example.features is not None]
    lengths_B = torch.tensor([len(source) for source in sources])
    src_BS = _padded(sources, src_pad_id) if sources else None
    return Batch(
        src_BS=src_BS,
        src_mask_BS=None if src_BS is None else torch.arange(src_BS.shape[1]) < lengths_B[:, None],
        tgt_BT=_padded([example.tgt for example in examples], pad_id),
        labels_BT=labels_BT,
        doc_BT=None,
        num_targets=int((labels_BT != IGNORED).sum()),
        num_examples=len(examples),
        features_BSF=_padded(features, 0) if features else None,
    )


def _padded(rows: Sequence[Ids], fill: int) -> Tensor:
    filled = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        filled[index, : len(row)] = row
    return torch.from_numpy(filled)
