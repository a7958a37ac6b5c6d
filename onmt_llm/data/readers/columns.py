"""Names of the keys of JSON objects and of table columns."""

from __future__ import annotations

from dataclasses import dataclass

from onmt_llm.config.data import CorpusConfig
from onmt_llm.errors import ConfigError

ROLES = ("system", "user", "assistant", "tool")

_ROLE_NAMES = {
    **{role: role for role in ROLES},
    "human": "user",
    "gpt": "assistant",
}


@dataclass(frozen=True)
class Keys:
    """Under which keys the parts of an example stand.

    Attributes:
        messages: Lists of turns; the first that is there counts.
        text: Whole texts.
        named: (question, answer), where the user has named them: they come before all else.
        pairs: (question, answer), in the order in which they are looked for.
        input: What an instruction is about.
        system: System text of a question; None = there is none.
        turns: (role, content) of a turn: the spelling of OpenAI and that of ShareGPT, unless they are named.
        roles: Our role of every name of a role.
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
        """Those of a corpus.

        Raises:
            ConfigError: `roles` names a role that we do not have, or one name for two roles.
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
        """All keys of an object that examples are made of."""
        keys = {*self.messages, self.text, self.input, *(key for pair in self.named + self.pairs for key in pair)}
        return keys | {self.system} if self.system else keys


def _roles(corpus: str, given: dict[str, list[str]]) -> dict[str, str]:
    names = dict(_ROLE_NAMES)
    for role, spellings in given.items():
        if role not in ROLES:
            raise ConfigError(
                f"The roles of corpus '{corpus}' must be among {', '.join(ROLES)}, but one is '{role}'.",
                hint="roles: {user: [human], assistant: [gpt, bot]} says what the data call them",
            )
        names.update(dict.fromkeys(spellings, role))
    return names
