"""`ModelText`: what the data must know of the model that it is prepared for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from onmt_llm.config.task import Task
from onmt_llm.errors import ConfigError
from onmt_llm.text.templates.builtin import get_template
from onmt_llm.text.templates.message import Template
from onmt_llm.text.tokenizers.base import Tokenizer
from onmt_llm.text.vocab import Vocab


@dataclass(frozen=True)
class ModelText:
    """Vocabularies, tokenisers and layout of a model.

    Attributes:
        task: "lm" (decoder only) or "seq2seq".
        vocab: Tokens of the decoder.
        src_vocab: Tokens of the encoder, where they differ.
        tokenizer: The checkpoint's tokeniser.
        src_tokenizer: That of the source side, where it differs.
        template: The checkpoint's chat template.
        feature_vocabs: Values of the source tokens' features.
        add_bos: A language model's input begins with BOS.

    Raises:
        ConfigError: The vocabulary lacks a token that the task needs.
    """

    task: Task
    vocab: Vocab
    src_vocab: Vocab | None = None
    tokenizer: Tokenizer | None = None
    src_tokenizer: Tokenizer | None = None
    template: Template | None = None
    add_bos: bool = True
    feature_vocabs: Sequence[Vocab] = ()

    def __post_init__(self) -> None:
        specials = self.vocab.specials
        if self.vocab.bos_id is None and (self.add_bos or self.task == "seq2seq"):
            raise ConfigError(
                f"The vocabulary must hold the token that starts a target, but {specials.bos!r} is not in it."
            )
        if self.vocab.eos_id is None and self.task == "seq2seq":
            raise ConfigError(
                f"The vocabulary must hold the token that ends a target, but {specials.eos!r} is not in it."
            )

    @property
    def bos(self) -> str | None:
        """Text of the token that starts an example; None where examples start without one."""
        return self.vocab.specials.bos if self.add_bos or self.task == "seq2seq" else None

    def control_tokens(self, template: Template | None) -> frozenset[str]:
        """Tokens that no text of a corpus may become: those with a role, and the template's."""
        specials = self.vocab.specials
        roles = frozenset(token for token in (specials.bos, specials.eos, specials.pad) if token)
        return roles | (template.control_tokens if template else frozenset())

    def open_template(self, name: str) -> Template:
        """A template by name or file, for this model's special tokens.

        Raises:
            ConfigError: There is no such template, or the vocabulary lacks its control tokens.
        """
        own = self.tokenizer.control_tokens if self.tokenizer else frozenset[str]()
        template = get_template(name, specials=self.vocab.specials, control_tokens=own)
        _check_known(name, template.control_tokens, self.vocab)
        return template


def _check_known(name: str, tokens: Collection[str], vocab: Vocab) -> None:
    unknown = sorted(token for token in tokens if token not in vocab)
    if unknown:
        raise ConfigError(
            f"The vocabulary must hold the control tokens of the template '{name}', but lacks {', '.join(unknown)}.",
            hint="the template alpaca needs none",
        )
