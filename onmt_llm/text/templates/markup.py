"""Control tokens in the source of a chat template."""

from __future__ import annotations

import re

from onmt_llm.config.checkpoint import TokenizerSpec
from onmt_llm.text.templates.jinja.template import JinjaTemplate
from onmt_llm.text.templates.message import Template
from onmt_llm.text.tokenizers.base import Tokenizer
from onmt_llm.text.vocab import Vocab

# <|im_start|>, </s>, [INST]
_MARKUP = re.compile(r"<[^<>\s'\"]{2,}>|\[/?[A-Z_]{2,}\]")


def markup_tokens(source: str, spec: TokenizerSpec, tokenizer: Tokenizer, vocab: Vocab) -> set[str]:
    """What looks like markup in the source of a template, and is a token of the vocabulary.

    Only a tokenizer.json names its special tokens: then these are tokens that it does not have (`update_vocab`).
    """
    found = {token for token in _MARKUP.findall(source) if token in vocab}
    return found.difference(tokenizer.vocab_tokens() or ()) if found and spec.kind == "huggingface" else found


def with_markup(template: Template | None, spec: TokenizerSpec, tokenizer: Tokenizer, vocab: Vocab) -> Template | None:
    """A template with the control tokens that it has with this vocabulary."""
    if not isinstance(template, JinjaTemplate):
        return template
    more = markup_tokens(template.source, spec, tokenizer, vocab) - template.control_tokens
    return template.with_control(more) if more else template
