"""Identities: hashes that tell whether two tokenisers, or two templates, are the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from onmt_llm.errors import OnmtLlmError
from onmt_llm.text.message import Message, Template

_PROBE = [Message(role, f"{role} ｟x｠\n") for role in ("system", "user", "assistant", "user", "assistant")]


def identity_of(kind: str, content: bytes | None, options: Any = None) -> str:
    """A hash of a kind, the content of its model file, and its options (plain data)."""
    digest = hashlib.sha256(json.dumps([kind, options], sort_keys=True, default=str).encode())
    digest.update(content or b"")
    return digest.hexdigest()


def template_identity(template: Template | None) -> str | None:
    """A hash of a template: of its source where it has one, and of what it makes of a conversation."""
    if template is None:
        return None
    try:
        segments = template.render(_PROBE, generation_prompt=False)
        rendered = [[segment.text, segment.tokens, segment.train_on] for segment in segments]
    except OnmtLlmError as error:  # templates may refuse any conversation
        rendered = [[str(error), None, False]]
    return identity_of(type(template).__name__, None, [getattr(template, "source", ""), rendered])
