"""`Keys`: which JSON keys or table columns hold the parts of an example."""

from __future__ import annotations

from dataclasses import dataclass

from onmt_llm.config.data import CorpusConfig
from onmt_llm.errors import ConfigError

ROLES = ("system", "user", "assistant", "tool")

ROLE_NAMES = {
    **{role: role for role in ROLES},
    "human": "user",
    "gpt": "assistant",
}
"""The role that each name in the data stands for."""


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
            pairs=(("prompt", "answer"), ("instruction", "output")),
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
