"""Families of Hugging Face architectures: each has a configuration map, weight-name rules and what it can express.

`base` defines `Family`; `llama` (with Mistral and Qwen2) and `falcon` are tables. To add a family, add a module and its
entry in `FAMILIES`.
"""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families import falcon, llama
from onmt_llm.checkpoint.formats.huggingface.families.base import Family

FAMILIES: tuple[Family, ...] = (llama.LLAMA, llama.MISTRAL, llama.QWEN2, falcon.FALCON)
