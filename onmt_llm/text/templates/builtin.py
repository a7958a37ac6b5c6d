"""The built-in chat templates, and `get_template`, which finds one by name or opens a Jinja file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.errors import DataError
from onmt_llm.optional import require
from onmt_llm.registry import Registry
from onmt_llm.text.segment import Segment
from onmt_llm.text.templates.message import NO_VARIABLES, Message, Template, merged, split_system, without_leading_bos

_ROLES_IN_JINJA = (
    "{% for m in messages %}"
    "{% if m['role'] not in ['user', 'assistant'] and not (loop.first and m['role'] == 'system') %}"
    "{{ raise_exception('Messages must be of user and assistant, after at most one of system, but one is of '"
    " ~ m['role']) }}{% endif %}{% endfor %}"
)

TEMPLATES: Registry[Callable[[SpecialTokens], Template]] = Registry("chat template")
"""The built-in templates: each takes a model's special tokens."""


def get_template(
    name_or_path: str | Path, *, specials: SpecialTokens | None = None, control_tokens: Collection[str] = ()
) -> Template:
    """A built-in template by name, or a Jinja file by path.

    Args:
        name_or_path: "alpaca", "vicuna" (the same), "chatml", "llama2", "llama3", "dialogue", "dialogue_fr", or a file.
        specials: The model's special tokens.
        control_tokens: For a Jinja file: control tokens that it may use, besides `specials`.

    Raises:
        ConfigError: There is no such template.
        DataError: The file cannot be read, or is not a template.
    """
    specials = specials or SpecialTokens()
    name = str(name_or_path)
    if name not in TEMPLATES and (name.endswith(".jinja") or Path(name).is_file()):
        # imported here, because jinja2 is slow to import and may be missing
        require("jinja2", f"chat template '{name}'")
        from onmt_llm.text.templates.jinja.template import JinjaTemplate

        return JinjaTemplate.read(Path(name), specials=specials, control_tokens=control_tokens)
    return TEMPLATES.get(name)(specials)


@TEMPLATES.register("alpaca")
@TEMPLATES.register("vicuna")
class AlpacaTemplate(Template):
    """The layout of the Stanford Alpaca data and of OpenNMT-py's Vicuna recipe; it has no control tokens.

    A system message replaces the preamble.
    """

    PREAMBLE = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )
    PREAMBLE_WITH_INPUT = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request."
    )
    INSTRUCTION = "\n\n### Instruction:\n"
    INPUT = "\n\n### Input:\n"
    RESPONSE = "\n\n### Response:\n"

    stop: tuple[str, ...] = ("\n\n### Instruction:", "### Instruction:")
    stop_tokens: tuple[str, ...] = ()
    control_tokens: frozenset[str] = frozenset()

    def __init__(self, specials: SpecialTokens | None = None) -> None:
        self._specials = specials or SpecialTokens()

    @property
    def jinja(self) -> str:
        return (
            f"{_bos_in_jinja(self._specials)}{_ROLES_IN_JINJA}"
            "{% if messages and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
            f"{{% else %}}{{{{ {self.PREAMBLE!r} }}}}{{% endif %}}{{% for m in messages %}}"
            f"{{% if m['role'] == 'user' %}}{{{{ {self.INSTRUCTION!r} ~ m['content'] }}}}"
            f"{{% elif m['role'] == 'assistant' %}}{{{{ {self.RESPONSE!r} ~ m['content'] }}}}{{% endif %}}"
            "{% endfor %}"
            f"{{% if add_generation_prompt %}}{{{{ {self.RESPONSE!r} }}}}{{% endif %}}"
        )

    @classmethod
    def question(cls, instruction: str, extra: str = "") -> list[Message]:
        """The messages of an instruction, with its input if there is one."""
        if not extra.strip():
            return [Message("user", instruction)]
        return [Message("system", cls.PREAMBLE_WITH_INPUT), Message("user", instruction + cls.INPUT + extra)]

    def render(
        self, messages: Sequence[Message], *, generation_prompt: bool, variables: Mapping[str, Any] = NO_VARIABLES
    ) -> list[Segment]:
        system, turns = split_system(messages)
        segments = [Segment(self.PREAMBLE, train_on=False)]
        if system is not None:
            segments = [Segment(system.content, train_on=system.trained)]
        for turn in turns:
            heading = self.INSTRUCTION if turn.role == "user" else self.RESPONSE
            segments += [Segment(heading, train_on=False), Segment(turn.content, train_on=turn.trained)]
        if generation_prompt:
            segments.append(Segment(self.RESPONSE, train_on=False))
        return merged(segments)


@TEMPLATES.register("chatml")
class ChatMLTemplate(Template):
    """OpenAI's ChatML, the layout of most small models since 2023."""

    stop: tuple[str, ...] = ()
    stop_tokens: tuple[str, ...] = ("<|im_end|>",)
    control_tokens = frozenset({"<|im_start|>", "<|im_end|>"})

    def __init__(self, specials: SpecialTokens) -> None:
        self._specials = specials

    @property
    def jinja(self) -> str:
        return (
            f"{_bos_in_jinja(self._specials)}{_ROLES_IN_JINJA}"
            "{% for m in messages %}"
            "{{ '<|im_start|>' ~ m['role'] ~ '\\n' ~ m['content'] ~ '<|im_end|>' ~ '\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        )

    def render(
        self, messages: Sequence[Message], *, generation_prompt: bool, variables: Mapping[str, Any] = NO_VARIABLES
    ) -> list[Segment]:
        split_system(messages)
        segments: list[Segment] = []
        for message in messages:
            train_on = message.trained
            segments += [
                _control("<|im_start|>"),
                Segment(f"{message.role}\n", train_on=False),
                Segment(message.content, train_on=train_on),
                _control("<|im_end|>", train_on=train_on),
                Segment("\n", train_on=False),
            ]
        if generation_prompt:
            segments += [_control("<|im_start|>"), Segment("assistant\n", train_on=False)]
        return merged(segments)


@TEMPLATES.register("llama3")
class Llama3Template(Template):
    """Llama 3's layout (Meta, `llama3/tokenizer.py`); contents lose their outer white space."""

    stop: tuple[str, ...] = ()
    stop_tokens: tuple[str, ...] = ("<|eot_id|>",)
    control_tokens = frozenset({"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"})

    def __init__(self, specials: SpecialTokens) -> None:
        self._specials = specials

    @property
    def jinja(self) -> str:
        header = "'<|start_header_id|>' ~ m['role'] ~ '<|end_header_id|>\\n\\n'"
        return (
            f"{{{{ bos_token }}}}{_ROLES_IN_JINJA}{{% for m in messages %}}"
            f"{{{{ {header} ~ m['content'] | trim ~ '<|eot_id|>' }}}}{{% endfor %}}"
            "{% if add_generation_prompt %}"
            "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
        )

    def render(
        self, messages: Sequence[Message], *, generation_prompt: bool, variables: Mapping[str, Any] = NO_VARIABLES
    ) -> list[Segment]:
        split_system(messages)
        segments = [_control(self._specials.bos)] if self._specials.bos else []
        for message in messages:
            train_on = message.trained
            segments += self._header(message.role)
            segments.append(Segment(message.content.strip(), train_on=train_on))
            segments.append(_control("<|eot_id|>", train_on=train_on))
        if generation_prompt:
            segments += self._header("assistant")
        return without_leading_bos(merged(segments), self._specials)

    def _header(self, role: str) -> list[Segment]:
        start, end = _control("<|start_header_id|>"), _control("<|end_header_id|>")
        return [start, Segment(role, train_on=False), end, Segment("\n\n", train_on=False)]


@TEMPLATES.register("llama2")
class Llama2Template(Template):
    """Llama 2's layout (Meta, `llama/generation.py`): every round is enclosed in `bos` and `eos`."""

    stop: tuple[str, ...] = ()
    stop_tokens: tuple[str, ...] = ()
    control_tokens: frozenset[str] = frozenset()

    def __init__(self, specials: SpecialTokens) -> None:
        self._specials = specials
        self._bos, self._eos = specials.bos or "<s>", specials.eos or "</s>"
        self.stop_tokens = (self._eos,)
        self.control_tokens = frozenset({self._bos, self._eos})

    @property
    def jinja(self) -> str:
        return (
            f"{_ROLES_IN_JINJA}"
            "{% set system = messages[0]['content'] if messages and messages[0]['role'] == 'system' %}"
            "{% for m in messages if m['role'] != 'system' %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
            "{{ raise_exception('user and assistant must alternate') }}{% endif %}"
            "{% set setting = '<<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' "
            "if loop.first and system is defined else '' %}"
            "{% if m['role'] == 'user' %}"
            f"{{{{ {self._bos!r} ~ '[INST] ' ~ (setting ~ m['content']) | trim ~ ' [/INST]' }}}}"
            f"{{% else %}}{{{{ ' ' ~ m['content'] | trim ~ ' ' ~ {self._eos!r} }}}}{{% endif %}}{{% endfor %}}"
        )

    def render(
        self, messages: Sequence[Message], *, generation_prompt: bool, variables: Mapping[str, Any] = NO_VARIABLES
    ) -> list[Segment]:
        system, turns = split_system(messages)
        segments: list[Segment] = []
        for number, turn in enumerate(turns):
            if turn.role != ("assistant" if number % 2 else "user"):
                raise DataError(
                    f"In the template llama2 user and assistant must alternate, but turn {number + 1} is '{turn.role}'."
                )
            if turn.role == "user":
                setting = f"<<SYS>>\n{system.content}\n<</SYS>>\n\n" if number == 0 and system is not None else ""
                segments += [
                    _control(self._bos),
                    Segment("[INST] ", train_on=False),
                    Segment((setting + turn.content).strip(), train_on=turn.trained),
                    Segment(" [/INST]", train_on=False),
                ]
            else:
                answer = Segment(f" {turn.content.strip()} ", train_on=turn.trained)
                segments += [answer, _control(self._eos, train_on=turn.trained)]
        return without_leading_bos(merged(segments), self._specials)


class DialogueTemplate(Template):
    """Turns of two numbered speakers, as in transcribed dialogues (Claire); the second one is the assistant.

    An answer ends where the next tag begins, so square brackets in messages become parentheses. A system message
    precedes the dialogue.

    Args:
        specials: The model's special tokens.
        speaker: Word for a speaker.
    """

    stop: tuple[str, ...] = ("[",)
    stop_tokens: tuple[str, ...] = ()
    control_tokens: frozenset[str] = frozenset()

    def __init__(self, specials: SpecialTokens, *, speaker: str) -> None:
        self._specials = specials
        self._tags = {"user": f"[{speaker} 1:]", "assistant": f"[{speaker} 2:]"}

    @property
    def jinja(self) -> str:
        user, assistant = self._tags["user"], self._tags["assistant"]
        return (
            f"{_bos_in_jinja(self._specials)}{_ROLES_IN_JINJA}{{% for m in messages %}}"
            "{% if not loop.first %}{{ '\\n' }}{% endif %}"
            f"{{% if m['role'] != 'system' %}}{{{{ {user!r} if m['role'] == 'user' else {assistant!r} }}}}{{{{ ' ' }}}}"
            "{% endif %}{{ m['content'] | replace('[', '(') | replace(']', ')') }}{% endfor %}"
            "{% if add_generation_prompt %}{% if messages %}{{ '\\n' }}{% endif %}"
            f"{{{{ {assistant!r} }}}}{{% endif %}}"
        )

    def render(
        self, messages: Sequence[Message], *, generation_prompt: bool, variables: Mapping[str, Any] = NO_VARIABLES
    ) -> list[Segment]:
        split_system(messages)
        segments: list[Segment] = []
        for message in messages:
            tag = self._tags.get(message.role, "")
            content = message.content.replace("[", "(").replace("]", ")")
            segments += [
                Segment(("\n" if segments else "") + tag, train_on=False),
                Segment(f" {content}" if tag else content, train_on=message.trained),
            ]
        if generation_prompt:
            segments.append(Segment(("\n" if segments else "") + self._tags["assistant"], train_on=False))
        return merged(segments)


@TEMPLATES.register("dialogue")
def _english_dialogue(specials: SpecialTokens) -> Template:
    return DialogueTemplate(specials, speaker="Speaker")


@TEMPLATES.register("dialogue_fr")
def _french_dialogue(specials: SpecialTokens) -> Template:
    return DialogueTemplate(specials, speaker="Intervenant")


def _bos_in_jinja(specials: SpecialTokens) -> str:
    """What puts the `bos` that our models add to every text into a Jinja template's text, to which nothing adds one."""
    return "{{ bos_token }}" if specials.add_bos and specials.bos else ""


def _control(token: str, *, train_on: bool = False) -> Segment:
    return Segment(tokens=[token], train_on=train_on)
