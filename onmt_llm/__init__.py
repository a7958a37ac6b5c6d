"""onmt_llm: train, fine-tune, convert, release and serve translation models and language models.

The public names below are imported on first use, so `import onmt_llm` is fast.

A run reads a typed configuration (`config`), turns text into batches (`data`, with the tokenisers and templates of
`text`) and trains the one Transformer (`nn`, `training`). Models live in checkpoint directories (`checkpoint`); an
engine answers with one (`generate`), `releasing` writes it for CTranslate2. `cli` has a module for each command.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onmt_llm.version import __version__

if TYPE_CHECKING:
    from onmt_llm.checkpoint.convert import convert
    from onmt_llm.checkpoint.load import load_model
    from onmt_llm.checkpoint.store import Checkpoint
    from onmt_llm.generate.open import open_engine
    from onmt_llm.releasing import release
    from onmt_llm.training.train import train

__all__ = ["Checkpoint", "__version__", "convert", "load_model", "open_engine", "release", "train"]

_HOME = {
    "Checkpoint": "onmt_llm.checkpoint.store",
    "convert": "onmt_llm.checkpoint.convert",
    "load_model": "onmt_llm.checkpoint.load",
    "open_engine": "onmt_llm.generate.open",
    "release": "onmt_llm.releasing",
    "train": "onmt_llm.training.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'onmt_llm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
