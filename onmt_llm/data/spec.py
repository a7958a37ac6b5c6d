"""What happens to the data of a run: `PipelineSpec`, all that a process needs to prepare batches.

It follows from the options, as do `Keys`, where the parts of an example are found, and `LossMask`, which parts the loss
counts. `derived_seed` makes a seed for each purpose.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from onmt_llm.config.data import BatchConfig, CorpusConfig, DataConfig, TrainOnEos, is_for_validation
from onmt_llm.config.learning import UNPAIRED
from onmt_llm.errors import ConfigError
from onmt_llm.text.codec import Codec
from onmt_llm.text.segment import Segment
from onmt_llm.text.templates.message import Message
from onmt_llm.text.vocab import Vocab

ROLES = ("system", "user", "assistant", "tool", "developer", "function", "ipython")

ROLE_NAMES = {
    **{role: role for role in ROLES},
    "human": "user",
    "gpt": "assistant",
}
"""The role that each name in the data stands for."""


@dataclass(frozen=True)
class PipelineSpec:
    """What happens to which corpora; it can be pickled.

    Attributes:
        corpora: Corpora by name.
        data: Options of all corpora.
        codec: Text side of the model that they are prepared for.
        seed: Seed of the order of batches and of random transforms.
        training: With random transforms, packing, and batches in random order.
        batching: How examples become batches.
        text_only: Apply only the transforms before the tokeniser.
        without: Names of transforms to leave out.

    Raises:
        ConfigError: Batching options are incompatible.
    """

    corpora: Mapping[str, CorpusConfig]
    data: DataConfig
    codec: Codec
    seed: int = 0
    training: bool = True
    batching: BatchConfig = field(default_factory=BatchConfig)
    text_only: bool = False
    without: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        batching = self.batching
        if batching.packing != "off" and self.data.objective != "sft":
            raise ConfigError(
                f"packing must be off with objective: {self.data.objective}, but is '{batching.packing}': chosen and "
                "rejected answers need rows of their own."
            )
        if self.data.objective in UNPAIRED and (batching.batch_type, self.batch_size) == ("sents", 1):
            raise ConfigError(
                f"{'batch_size' if self.training else 'valid_batch_size'} must be at least 2 with objective: "
                f"{self.data.objective}, which also needs answers to other prompts of the micro-batch, but is 1.",
                hint="accum_count makes updates larger, but not micro-batches",
            )
        if batching.packing in ("split", "wrap") and self.codec.task == "seq2seq":
            raise ConfigError(
                f"packing must be 'off' or 'pack' for an encoder-decoder, but is '{batching.packing}': a target that "
                "is cut has no source of its own."
            )
        if batching.packing != "off" and batching.packing_length is None and batching.batch_type == "sents":
            raise ConfigError(
                "packing_length must be given with batch_type 'sents', where batch_size counts rows, but is not."
            )

    def codec_of(self, name: str) -> Codec:
        """The codec for the languages of a corpus.

        Raises:
            ConfigError: The model has no such language.
        """
        corpus, data = self.corpora[name], self.data
        src = data.src_lang if corpus.src_lang is None else corpus.src_lang
        tgt = data.tgt_lang if corpus.tgt_lang is None else corpus.tgt_lang
        return self.codec.for_languages(src, tgt)

    def loss_mask(self, name: str) -> LossMask:
        """The parts of a corpus' conversations that are trained."""
        return LossMask.of(self.data, self.corpora[name])

    @property
    def batch_size(self) -> int:
        return self.batching.batch_size if self.training else self.batching.valid_batch_size

    @property
    def bucket_size(self) -> int:
        """Records per bucket: at least those of one batch."""
        batching = self.batching
        return max(batching.bucket_size, self.batch_size) if batching.batch_type == "sents" else batching.bucket_size

    @property
    def room_option(self) -> str:
        """The option that limits the tokens of a batch or a packed row."""
        if not self.training:
            return "valid_batch_size"
        return "packing_length" if self.batching.packing != "off" and self.batching.packing_length else "batch_size"

    @property
    def row_length(self) -> int:
        """Positions of a packed row."""
        return self.batching.packing_length or self.batch_size

    @property
    def pad_ids(self) -> tuple[int, int]:
        """Padding ids of targets and sources."""
        return _pad_id(self.codec.vocab), _pad_id(self.codec.src_vocab)


VARIABLES_KEY = "chat_template_kwargs"
"""The key of an object with more variables for the chat template, as in TRL and in OpenAI-compatible servers."""
VARIABLE_KEYS = ("tools", "documents", VARIABLES_KEY)
"""Keys of variables that are read whatever the chat template takes."""
PREFERENCE_KEYS = ("chosen", "rejected", "completion", "label")
"""Keys of the answers of preference data."""
APART_KEYS = ("system", "system_prompt", "history")
"""Keys of other programs' data that hold a part of an example and are not read by themselves."""


@dataclass(frozen=True)
class Keys:
    """The keys that hold the parts of an example.

    Attributes:
        messages: Lists of turns; the first key that is present is used.
        text: Plain text.
        named: (prompt, answer) keys that the user has configured; they take precedence.
        pairs: (prompt, answer) keys, in the order in which they are tried.
        input: Input that an instruction refers to.
        system: System prompt; None = no such key.
        turns: (role, content) keys of a turn: the configured ones, then those of ShareGPT and OpenAI.
        roles: Maps each name of a role in the data to one of `ROLES`.
    """

    messages: tuple[str, ...]
    text: str
    named: tuple[tuple[str, str], ...]
    pairs: tuple[tuple[str, str], ...]
    input: str
    system: str | None
    turns: tuple[tuple[str, str], ...]
    roles: dict[str, str]

    @classmethod
    def of(cls, name: str, corpus: CorpusConfig) -> Keys:
        """The keys of a corpus.

        Raises:
            ConfigError: `roles` names an unknown role, or gives one name to two roles.
        """
        is_named = corpus.prompt_key or corpus.answer_key
        turns: tuple[tuple[str, str], ...] = (("from", "value"), ("role", "content"))
        if corpus.role_key or corpus.content_key:
            content = "value" if corpus.role_key == "from" else "content"
            turns = ((corpus.role_key or "role", corpus.content_key or content), *turns)
        return cls(
            messages=tuple(dict.fromkeys((corpus.messages_key, "conversations", "messages"))),
            text=corpus.text_key,
            named=((corpus.prompt_key or "instruction", corpus.answer_key or "output"),) if is_named else (),
            pairs=(("prompt", "answer"), ("instruction", "output"), ("prompt", "completion")),
            input=corpus.input_key,
            system=corpus.system_key,
            turns=turns,
            roles=_roles(name, corpus.roles),
        )

    @property
    def names(self) -> set[str]:
        """All keys that an example may be built from."""
        keys = {*self.messages, self.text, self.input, *(key for pair in self.named + self.pairs for key in pair)}
        return keys | {self.system} if self.system else keys

    @property
    def columns(self) -> set[str]:
        """All keys that are read, or looked for in order to warn; variables of a chat template may be more."""
        return {*self.names, *PREFERENCE_KEYS, *VARIABLE_KEYS, *APART_KEYS}


@dataclass(frozen=True)
class LossMask:
    """Which parts of a conversation are trained.

    Attributes:
        prompts: All text is trained, as in text files without a mask, except turns whose own flag is false.
        roles: Roles whose turns are trained.
        on_eos: Which end-of-turn tokens are trained: those of trained turns, the last one, all, or none.
    """

    prompts: bool = False
    roles: frozenset[str] = frozenset({"assistant"})
    on_eos: TrainOnEos = "turn"

    @classmethod
    def of(cls, data: DataConfig, corpus: CorpusConfig) -> LossMask:
        """The mask according to the options; `prompts` is set by the parser."""
        return cls(
            roles=frozenset(data.train_roles if corpus.train_roles is None else corpus.train_roles),
            on_eos=corpus.train_on_eos or data.train_on_eos,
        )

    def mark(self, messages: Sequence[Message]) -> list[Message]:
        """Set the flag of each turn that has none, according to its role."""
        return [
            message if message.train is not None else replace(message, train=self.prompts or message.role in self.roles)
            for message in messages
        ]

    def mark_ends(
        self, texts: Sequence[Sequence[Segment]], messages: Sequence[Message], stop_tokens: Collection[str]
    ) -> list[list[Segment]]:
        """Apply the parts of the mask that do not depend on turns to the texts of a conversation.

        Args:
            texts: The training texts of `mark(messages)`. Each is longer than those before it.
            messages: The original messages, with only their own flags.
            stop_tokens: Tokens that end a turn.
        """
        marked = [list(segments) for segments in texts]
        if self.prompts and all(message.train is None for message in messages):
            marked[-1] = [segment.like(train_on=True) for segment in marked[-1]]
        seen = 0
        for segments in marked if self.on_eos != "turn" else ():
            ends = [n for n, segment in enumerate(segments) if segment.tokens and segment.tokens[0] in stop_tokens]
            last = ends[-1:] if segments is marked[-1] else []
            trained = {"last": last, "all": ends[seen:], "none": []}[self.on_eos]
            seen = len(ends)
            for number in ends:
                segments[number] = segments[number].like(train_on=number in trained)
        return marked

    def end_of_text(self, *, is_last: bool) -> bool | None:
        """Whether the EOS after a text without end-of-turn tokens is trained; None = as the last part of the text.

        Args:
            is_last: It is the last text of its conversation.
        """
        return None if self.on_eos == "turn" else self.on_eos == "all" or (self.on_eos == "last" and is_last)


def split_corpora(corpora: Mapping[str, CorpusConfig]) -> tuple[dict[str, CorpusConfig], dict[str, CorpusConfig]]:
    """Corpora for training, and those for validation: `valid` and `valid_*`.

    Raises:
        ConfigError: There is none for training.
    """
    valid = {name: corpus for name, corpus in corpora.items() if is_for_validation(name)}
    train = {name: corpus for name, corpus in corpora.items() if name not in valid}
    if not train:
        raise ConfigError(
            "`data` must name at least one corpus for training, but names "
            + (f"only {', '.join(valid)}, for validation." if valid else "none.")
        )
    return train, valid


def derived_seed(*parts: int | str) -> int:
    """A seed that depends only on its purpose: not on numbers drawn earlier, nor on the hash seed of the process."""
    return random.Random(":".join(map(str, parts))).getrandbits(31)


def _roles(corpus: str, given: dict[str, list[str]]) -> dict[str, str]:
    names = dict(ROLE_NAMES)
    for role, spellings in given.items():
        if role not in ROLES:
            raise ConfigError(
                f"The roles of corpus '{corpus}' must be among {', '.join(ROLES)}, but one is '{role}'.",
                hint="roles: {user: [human], assistant: [gpt, bot]} gives the names of roles in the data",
            )
        names.update(dict.fromkeys(spellings, role))
    return names


def _pad_id(vocab: Vocab) -> int:
    """The id of padding; masked in model and loss, so any id will do if the vocabulary has none."""
    return vocab.pad_id if vocab.pad_id is not None else vocab.eos_id or 0
