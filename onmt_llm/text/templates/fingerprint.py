"""Fingerprints of chat templates."""

from __future__ import annotations

from onmt_llm.checksums import fingerprint
from onmt_llm.errors import OnmtLlmError
from onmt_llm.text.templates.message import Message, Template

_PROBE = [Message(role, f"{role} ｟x｠\n") for role in ("system", "user", "assistant", "user", "assistant")]


def template_fingerprint(template: Template | None) -> str | None:
    """A hash of a template: of its source, if it has one, and of a conversation's training texts."""
    if template is None:
        return None
    try:
        texts = template.training_texts(_PROBE)
        rendered = [[segment.text, segment.tokens, segment.train_on] for segments in texts for segment in segments]
    except OnmtLlmError as error:  # a template may refuse any conversation
        rendered = [[str(error), None, False]]
    return fingerprint(type(template).__name__, None, [getattr(template, "source", ""), rendered])
