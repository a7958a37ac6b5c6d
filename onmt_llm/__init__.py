"""onmt_llm: train, fine-tune, convert, release and serve translation models and language models.

The public names below are imported on first use, so `import onmt_llm` is fast. Functions take the options of the
commands as keywords.

>>> import onmt_llm
>>> engine = onmt_llm.open_engine("llama")
>>> answer = engine.ask("Hello", max_length=8)

A run reads a typed configuration (`config`), turns text into batches (`data`, with the tokenisers and templates of
`text`) and trains the one Transformer (`nn`, `training`). Models live in checkpoint directories (`checkpoint`); an
engine answers with one (`generate`), `releasing` writes it for CTranslate2. `cli` has a module for each command, `api`
the same as Python functions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onmt_llm.version import __version__

if TYPE_CHECKING:
    from onmt_llm.api.engine import TextEngine, open_engine
    from onmt_llm.api.jobs import build_vocab, convert, load_config, release, train
    from onmt_llm.checkpoint.load import load_model
    from onmt_llm.checkpoint.store import Checkpoint
    from onmt_llm.errors import CheckpointError, ConfigError, DataError, OnmtLlmError, UnsupportedError
    from onmt_llm.generate.session import ChatSession

__all__ = [
    "ChatSession",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "OnmtLlmError",
    "TextEngine",
    "UnsupportedError",
    "__version__",
    "build_vocab",
    "convert",
    "load_config",
    "load_model",
    "open_engine",
    "release",
    "train",
]

_HOMES = {
    "onmt_llm.api.engine": ("TextEngine", "open_engine"),
    "onmt_llm.api.jobs": ("build_vocab", "convert", "load_config", "release", "train"),
    "onmt_llm.checkpoint.load": ("load_model",),
    "onmt_llm.checkpoint.store": ("Checkpoint",),
    "onmt_llm.errors": ("CheckpointError", "ConfigError", "DataError", "OnmtLlmError", "UnsupportedError"),
    "onmt_llm.generate.session": ("ChatSession",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'onmt_llm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
