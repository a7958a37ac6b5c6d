"""Records to examples: strict UTF-8, JSON, prompts and answers, conversations.

Placeholders (`｟newline｠`, `｟_mask_before_｠`) mean something in the lines of text files only. Text out of JSON is
taken as it is, so that nothing a user wrote there can become a line break or a mark.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.alignment import parse_pharaoh
from onmt_llm.data.example import Example
from onmt_llm.data.readers import Record, decode
from onmt_llm.data.trained import TrainedParts, read_flag
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.text.features import parse_defaults, split_text
from onmt_llm.text.placeholders import MASK_BEFORE, from_line
from onmt_llm.text.segment import Segment
from onmt_llm.text.templates import AlpacaTemplate, Message, Template, get_template

Task = Literal["lm", "seq2seq"]

DEFAULT_TEMPLATE = "alpaca"
ANSWERS = TrainedParts()

# the two spellings in use: role/content (OpenAI) and from/value (ShareGPT)
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
}
_PAIRS = (("prompt", "answer"), ("instruction", "output"))


class ExampleParser:
    """Turns the records of one corpus into examples.

    Args:
        name: Name of the corpus, for messages.
        corpus: Its paths, template and keys.
        paths: Files of the records' parts, for messages.
        task: A language model reads source and target as one text; prompts and conversations go through a template.
        template: The checkpoint's chat template, where it has one.
        open_template: Opens the template that the corpus names.
        n_src_feats: Features that source words carry.
        src_feats_defaults: Those of the words of a line that has none.
        trained: Which parts of conversations are trained.
        zero_out_prompt_loss: Only answers are trained; False = all text is; None = answers only, where JSON tells them
            apart, and all text of text files.

    Attributes:
        template: The layout of conversations; None where there is none (yet: alpaca is opened when one comes).
    """

    def __init__(
        self,
        name: str,
        corpus: CorpusConfig,
        *,
        paths: Sequence[Path],
        task: Task,
        template: Template | None = None,
        open_template: Callable[[str], Template] = get_template,
        n_src_feats: int = 0,
        src_feats_defaults: str | None = None,
        trained: TrainedParts = ANSWERS,
        zero_out_prompt_loss: bool | None = None,
    ) -> None:
        self.name = name
        self.corpus = corpus
        self.paths = tuple(paths)
        self.task = task
        self.zero_out = zero_out_prompt_loss is not False if corpus.path_jsonl else bool(zero_out_prompt_loss)
        self.trained = replace(trained, prompts=not self.zero_out)
        self.num_features = n_src_feats
        self.default_features = parse_defaults(src_feats_defaults, n_src_feats)
        self.template = open_template(corpus.template) if corpus.template else template
        self._open_template = open_template
        if task == "seq2seq" and not (corpus.path_tgt or corpus.path_jsonl):
            raise ConfigError(f"Corpus '{name}' must have a path_tgt, since an encoder-decoder model is trained.")
        if task == "lm" and corpus.path_align:
            raise ConfigError(f"Corpus '{name}' must have no path_align, since a language model is trained.")

    def __call__(self, record: Record) -> Example | None:
        """The example of a record, or None when it is empty.

        Raises:
            DataError: Bad UTF-8, bad JSON, or an object of unknown shape; the message names file and line.
        """
        fields = zip(record.parts, self.paths, record.offsets, strict=True)
        texts = [decode(raw, path=path, line=record.line, offset=offset) for raw, path, offset in fields]
        if self.corpus.path_jsonl:
            return self._from_json(texts[0], record) if texts[0].strip() else None
        if self.corpus.path_txt:
            texts[0] = texts[0].replace("\r\n", "\n")
        if len(texts) >= 2:
            example = self._pair(from_line(texts[0]), from_line(texts[1]), record)
            if example is not None and len(texts) == 3:
                example.align = parse_pharaoh(texts[2], where=f"{self.paths[2]}:{record.line}")
            return example
        return self._plain(split_at_marker(texts[0], self.zero_out), record)

    def where(self, record: Record) -> str:
        """`file:line` of a record."""
        return f"{self.paths[0]}:{record.line}"

    def _plain(self, segments: list[Segment], record: Record) -> Example | None:
        if not any(segment.text and segment.text.strip() for segment in segments):
            return None
        return Example(src=segments, corpus=self.name, line=record.line)

    def _pair(self, prompt: str, answer: str, record: Record) -> Example | None:
        if not (prompt.strip() and answer.strip()):
            return None
        features: list[list[str]] | None = None
        if self.num_features:
            try:
                prompt, features = split_text(prompt, self.num_features, self.default_features)
            except DataError as error:
                raise DataError(f"{self.where(record)}: {error.message}", hint=error.hint) from error
        return Example(
            src=[Segment(prompt, train_on=not self.zero_out)],
            tgt=[Segment(answer)],
            corpus=self.name,
            line=record.line,
            src_features=features,
        )

    def _from_json(self, text: str, record: Record) -> Example | None:
        item = self._load(text, record)
        for key in (self.corpus.messages_key, "conversations", "messages"):
            if key in item:
                return self._conversation(self._messages(item[key], record), record)
        if "text" in item:
            if self.task == "seq2seq":
                raise self._bad(record, "has 'text', but an encoder-decoder model needs 'prompt' and 'answer'")
            return self._plain([Segment(self._string(item, "text", record))], record)
        for prompt_key, answer_key in _PAIRS:
            if prompt_key in item and answer_key in item:
                prompt, answer = (self._string(item, key, record) for key in (prompt_key, answer_key))
                extra = self._string(item, "input", record) if item.get("input") else ""
                return self._prompt(prompt, extra, answer, record)
        known = f"'text', 'prompt' and 'answer', 'instruction' and 'output', or '{self.corpus.messages_key}'"
        raise self._bad(record, f"must have {known}, but has {', '.join(sorted(item)) or 'no keys'}")

    def _load(self, text: str, record: Record) -> Mapping[str, Any]:
        try:
            item = json.loads(text)
        except json.JSONDecodeError as error:
            problem = f"must be one JSON object, but is not JSON: {error.msg} at column {error.colno}"
            raise self._bad(record, problem) from error
        except (ValueError, RecursionError) as error:
            raise self._bad(record, f"cannot be read as JSON: {error}") from error
        if not isinstance(item, dict):
            raise self._bad(record, f"must be one JSON object, but is a {type(item).__name__}")
        return item

    def _string(self, item: Mapping[str, Any], key: str, record: Record) -> str:
        value = item[key]
        if not isinstance(value, str):
            raise self._bad(record, f"must have text under '{key}', but has a {type(value).__name__}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise self._bad(record, f"must have Unicode text under '{key}', but holds half a surrogate pair") from error
        return value

    def _messages(self, turns: Any, record: Record) -> list[Message]:
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise self._bad(record, "must have a list of turns as its conversation")
        return [self._message(turn, record) for turn in turns]

    def _message(self, turn: Mapping[str, Any], record: Record) -> Message:
        role_key, content_key = ("from", "value") if "from" in turn else ("role", "content")
        if role_key not in turn or content_key not in turn:
            keys = ", ".join(sorted(turn)) or "no keys"
            problem = f"must have 'role' and 'content' (or 'from' and 'value') in every turn, but one has {keys}"
            raise self._bad(record, problem)
        role = self._string(turn, role_key, record)
        if role not in _ROLES:
            raise self._bad(record, f"must have roles among {', '.join(_ROLES)}, but has '{role}'")
        try:
            flag = read_flag(turn)
        except ValueError as error:
            raise self._bad(record, str(error)) from error
        return Message(_ROLES[role], self._string(turn, content_key, record), train=flag)

    def _prompt(self, prompt: str, extra: str, answer: str, record: Record) -> Example | None:
        joined = f"{prompt}\n\n{extra}" if extra else prompt
        if self.template is None or self.task == "seq2seq":
            return self._pair(joined, answer, record)
        if not (prompt.strip() and answer.strip()):
            return None
        alpaca = isinstance(self.template, AlpacaTemplate)
        question = AlpacaTemplate.question(prompt, extra) if alpaca else [Message("user", joined)]
        return self._conversation([*question, Message("assistant", answer)], record)

    def _conversation(self, messages: Sequence[Message], record: Record) -> Example | None:
        if self.task == "seq2seq":
            raise self._bad(record, "is a conversation, which only a language model can be trained on")
        if not any(message.content.strip() for message in messages):
            return None
        if self.template is None:
            self.template = self._open_template(DEFAULT_TEMPLATE)
        try:
            segments = self.template.render(self.trained.mark(messages), generation_prompt=False)
        except (DataError, ConfigError) as error:
            raise self._bad(record, f"does not fit the chat template: {error.message}") from error
        return Example(
            src=self.trained.mark_ends(segments, messages, self.template.stop_tokens),
            corpus=self.name,
            line=record.line,
            closed=bool(self.template.stop_tokens),
            train_end=self.trained.end_of_text,
        )

    def _bad(self, record: Record, problem: str) -> DataError:
        return DataError(f"{self.where(record)} {problem}.")


def split_at_marker(line: str, zero_out_prompt_loss: bool) -> list[Segment]:
    """A line as segments: what stands before its last `｟_mask_before_｠` is not trained. Markers are dropped."""
    prompt, found, answer = line.rpartition(MASK_BEFORE)
    if not found:
        return [Segment(from_line(line))]
    prompt = from_line(prompt.replace(MASK_BEFORE, ""))
    parts = [Segment(prompt, train_on=not zero_out_prompt_loss), Segment(from_line(answer))]
    return [part for part in parts if part.text]
