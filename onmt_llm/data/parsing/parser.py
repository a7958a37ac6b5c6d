"""`ExampleParser`: turn records into examples (text lines, JSON objects, table rows, conversations).

Text must be valid UTF-8. Placeholders (`｟newline｠`, `｟_mask_before_｠`) are interpreted only in lines of text files.
Text from JSON is literal, so nothing in it can become a line break or a mask marker.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.config.model import Task
from onmt_llm.data.example import Example
from onmt_llm.data.parsing import preferences
from onmt_llm.data.parsing.alignment import parse_pharaoh
from onmt_llm.data.parsing.conversation import read_messages, read_text, read_variables
from onmt_llm.data.parsing.json_object import load_object, without_nulls
from onmt_llm.data.parsing.text_lines import split_at_marker, zero_byte
from onmt_llm.data.readers import BadRecord, Record, decode
from onmt_llm.data.readers.rows import header, row_format
from onmt_llm.data.selection import FieldReader, Where
from onmt_llm.data.selection.select import WHERE
from onmt_llm.data.spec import APART_KEYS, Keys, LossMask
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.log import log_once
from onmt_llm.text.features import parse_defaults, split_text
from onmt_llm.text.placeholders import from_line
from onmt_llm.text.segment import Segment
from onmt_llm.text.templates.builtin import AlpacaTemplate, get_template
from onmt_llm.text.templates.message import Message, Template

DEFAULT_TEMPLATE = "alpaca"
EMPTY = "empty"
LOW_SCORE = "low_score"
TOO_MANY_BYTES = "too_many_bytes"


class ParsedRecord(NamedTuple):
    """The examples of a record, or why it has none."""

    examples: list[Example]
    skipped: str = ""
    """The reason for skipping the record; "" if it has examples."""


class ExampleParser:
    """Parses the records of one corpus into examples.

    Args:
        name: Name of the corpus, for messages.
        corpus: Its paths, template and keys.
        data: Options of all corpora.
        task: A language model reads source and target as one text; prompts and conversations go through a template.
        template: The checkpoint's chat template, if any.
        open_template: Opens the template that the corpus names.

    Attributes:
        template: The chat template; None until the first conversation opens the default one (alpaca), which prompts
            with answers do not go through.
    """

    def __init__(
        self,
        name: str,
        corpus: CorpusConfig,
        data: DataConfig,
        *,
        task: Task,
        template: Template | None = None,
        open_template: Callable[[str], Template] = get_template,
    ) -> None:
        self.name = name
        self.corpus = corpus
        self.task = task
        zero_out = data.zero_out_prompt_loss
        self._has_keys = corpus.has_keys
        self.zero_out = zero_out is not False if self._has_keys else bool(zero_out)
        self.trained = replace(LossMask.of(data, corpus), prompts=not self.zero_out)
        self.num_features = data.n_src_feats
        self.default_features = parse_defaults(data.src_feats_defaults, data.n_src_feats)
        named = corpus.template or data.template
        self.template = open_template(named) if named else template
        self._pairs_are_plain = self.template is None or task == "seq2seq"
        self._open_template = open_template
        self._keys = Keys.of(name, corpus)
        self._apart = {key for key in APART_KEYS if key != self._keys.system}
        self._parts = {*self._apart, *self._keys.names} - {self._keys.system}
        self._where = Where(name, corpus.where)
        self._fields = FieldReader(name, corpus)
        self._max_bytes = data.max_record_bytes
        self._has_preferences = data.objective != "sft"
        if self._has_preferences and not self._has_keys:
            raise ConfigError(
                f"Corpus '{name}' must hold JSON objects (path_jsonl ...), since preference data have keys."
            )
        self._rows = row_format(corpus) if corpus.path_table else None
        self._has_nulls = corpus.path_table is not None and self._rows is None
        self._headers: dict[Path, list[str]] = {}
        if task == "seq2seq" and not (corpus.path_tgt or self._has_keys):
            raise ConfigError(f"Corpus '{name}' must have a path_tgt, since an encoder-decoder model is trained.")
        if task == "lm" and corpus.path_align:
            raise ConfigError(f"Corpus '{name}' must have no path_align, since a language model is trained.")

    def __call__(self, record: Record) -> ParsedRecord:
        """Parse a record. Only a conversation may have several examples, of which each trains some of the answers (see
        `Template.training_texts`).

        Raises:
            BadRecord: Bad UTF-8, zero bytes, bad JSON, or an object of unknown shape; the message names file and line.
        """
        if max(map(len, record.parts)) > self._max_bytes:
            return ParsedRecord([], TOO_MANY_BYTES)
        for place, raw in enumerate(record.parts):
            if 0 in raw:
                raise zero_byte(raw, record.paths[place], record.line, record.offsets[place])
        fields = zip(record.parts, record.paths, record.offsets, strict=True)
        texts = [decode(raw, path=path, line=record.line, offset=offset) for raw, path, offset in fields]
        if self.corpus.path_sco and self._score(texts.pop(), record) < (self.corpus.score_threshold or 0):
            return ParsedRecord([], LOW_SCORE)
        if self._has_keys:
            if not texts[0].strip():
                return ParsedRecord([], EMPTY)
            item = self._load(texts[0], record) if self._rows is None else self._row(texts[0], record)
            if self._where and not self._where(item, record.where):
                return ParsedRecord([], WHERE)
            examples = self._object(item, record)
        else:
            if self._where and not self._where(self._fields.of_texts(texts), record.where):
                return ParsedRecord([], WHERE)
            examples = _listed(self._text(texts, record))
        return ParsedRecord(examples, "" if examples else EMPTY)

    def _score(self, text: str, record: Record) -> float:
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if math.isnan(score):
            where = f"{record.paths[-1]}:{record.line}"
            raise BadRecord(f"A score must be a number, but {where} holds '{text[:40]}'.", reason="bad_score")
        return score

    def _text(self, texts: list[str], record: Record) -> Example | None:
        if self.corpus.path_txt:
            texts[0] = texts[0].replace("\r\n", "\n")
        if not self.corpus.path_tgt:
            return self._plain(split_at_marker(texts[0], self.zero_out), record)
        example = self._pair(from_line(texts[0]), from_line(texts[1]), record)
        if example is not None and self.corpus.path_align:
            try:
                example.align = parse_pharaoh(texts[2], where=f"{record.paths[2]}:{record.line}")
            except DataError as error:
                raise BadRecord(error.message, reason="bad_alignment", hint=error.hint) from error
        return example

    def _plain(self, segments: list[Segment], record: Record) -> Example | None:
        if not any(segment.text and segment.text.strip() for segment in segments):
            return None
        return Example(src=segments, corpus=self.name, line=record.line, path=record.paths[0])

    def _pair(self, prompt: str, answer: str, record: Record) -> Example | None:
        if not (prompt.strip() and answer.strip()):
            return None
        features: list[list[str]] | None = None
        if self.num_features:
            try:
                prompt, features = split_text(prompt, self.num_features, self.default_features)
            except DataError as error:
                raise BadRecord(f"{record.where}: {error.message}", reason="bad_features", hint=error.hint) from error
        return Example(
            src=[Segment(prompt, train_on=not self.zero_out)],
            tgt=[Segment(answer)],
            corpus=self.name,
            line=record.line,
            path=record.paths[0],
            src_features=features,
        )

    def _object(self, item: Mapping[str, Any], record: Record) -> list[Example]:
        """The examples of a JSON object or a row; none if it is empty."""
        if self._has_nulls:
            item = {key: without_nulls(value) for key, value in item.items()}
        keys = self._keys
        if self._has_preferences:
            self._note_left_out(item, keys.names, self._apart)
            return _listed(self._preference(item, record))
        for pair in keys.named:
            if all(key in item for key in pair):
                self._note_left_out(item, pair, self._apart)
                return self._prompt_and_answer(item, pair, record)
        for key in keys.messages:
            if key in item:
                self._note_left_out(item, {key}, self._parts)
                return self._conversation(
                    self._with_system(self._messages(item[key], record), item, record), record, item
                )
        if keys.text in item:
            self._note_left_out(item, {keys.text}, self._parts)
            if self.task == "seq2seq":
                raise self._bad(record, f"has '{keys.text}', but an encoder-decoder model needs 'prompt' and 'answer'")
            return _listed(self._plain([Segment(self._string(item, keys.text, record))], record))
        for pair in keys.pairs:
            if all(key in item for key in pair):
                self._note_left_out(item, {*pair, keys.input}, self._parts)
                return self._prompt_and_answer(item, pair, record)
        pairs = [f"'{prompt}' and '{answer}'" for prompt, answer in keys.named + keys.pairs]
        known = f"'{keys.text}', {', '.join(pairs)}, or '{keys.messages[0]}'"
        raise self._bad(record, f"must have {known}, but has {', '.join(sorted(item)) or 'no keys'}")

    def _preference(self, item: Mapping[str, Any], record: Record) -> Example | None:
        """A prompt with a chosen and a rejected answer, or with one answer and its label."""
        keys = self._keys
        prompts = list(dict.fromkeys(prompt for prompt, _ in keys.named + keys.pairs))
        try:
            preference = preferences.parse_preference(item, prompts=prompts, turns=keys.messages)
        except ValueError as error:
            raise self._bad(record, f"must have {error}") from error
        rated = [(self._answered(item, preference.prompt, answer, record), good) for answer, good in preference.answers]
        examples = []
        for example, good in rated:
            if example is None:
                return None
            example.chosen = good
            examples.append(example)
        examples[0].rejected = examples[1] if len(examples) > 1 else None
        return examples[0]

    def _answered(self, item: Mapping[str, Any], prompt: Any, answer: Any, record: Record) -> Example | None:
        """A prompt and an answer, each as text or turns; only the answer is trained."""
        if isinstance(prompt, str) and isinstance(answer, str):
            return next(iter(self._prompt(prompt, answer, record, item)), None)
        before = [Message("user", prompt)] if isinstance(prompt, str) else self._messages(prompt, record)
        turns = [answer] if isinstance(answer, dict) else answer
        after = [Message("assistant", answer)] if isinstance(answer, str) else self._messages(turns, record)
        try:
            before, after = preferences.parted(before, after)
        except ValueError as error:
            raise self._bad(record, f"must have {error}") from error
        before = self._with_system(before, item, record)
        examples = self._conversation([*before, *after], record, item)
        if not examples:
            return None
        wanted = sum(message.role == "assistant" for message in after)
        if preferences.train_last(examples[-1].src, turns=wanted) < wanted and len(examples) > 1:
            raise self._bad(
                record,
                f"has {wanted} turns of the assistant in one answer, which the chat template puts into separate texts",
                hint="give the conversation before the last turn as the prompt",
            )
        return replace(examples[-1], part=0)

    def _prompt_and_answer(self, item: Mapping[str, Any], pair: tuple[str, str], record: Record) -> list[Example]:
        if any(isinstance(item[key], list) for key in pair):
            return _listed(self._answered(item, item[pair[0]], item[pair[1]], record))
        prompt, answer = (self._string(item, key, record) for key in pair)
        return self._prompt(prompt, answer, record, item)

    def _note_left_out(self, item: Mapping[str, Any], read: Collection[str], known: Collection[str]) -> None:
        """Warn about parts of an example (`known`) that are beside those which are read."""
        left = [key for key in known if item.get(key) and key not in read]
        if self.template is not None:
            left = [key for key in left if key not in self.template.inputs]
        if left:
            others, used = (", ".join(f"'{key}'" for key in sorted(keys) if key in item) for keys in (left, read))
            log_once(
                f"Corpus '{self.name}' has {others} beside {used}, and only the latter is read. To read "
                "others, name them: system_key, prompt_key and answer_key, text_key.",
                level=logging.WARNING,
            )

    def _load(self, text: str, record: Record) -> Mapping[str, Any]:
        try:
            return load_object(text)
        except ValueError as error:
            known = "path_jsonl reads one JSON object per line; path_json reads a file that is one JSON array"
            hint = known if self.corpus.path_jsonl and text.lstrip()[:1] in ("[", "{", "]", "}") else None
            problem = f"must be one JSON object, but {error}"
            raise BadRecord(f"{record.where} {problem}.", reason="bad_json", hint=hint) from error

    def _row(self, text: str, record: Record) -> Mapping[str, Any]:
        assert self._rows is not None
        path = record.paths[0]
        if path not in self._headers:
            self._headers[path] = header(path, self._rows)
        names = self._headers[path]
        try:
            fields = self._rows.fields(text)
        except ValueError as error:
            # a stray quote has merged this row with others: skipping it would lose all of them
            raise DataError(
                f"{record.where} must be a valid row, but is not: {error}.",
                hint='write a quote within a field as "", and put the field in quotes',
            ) from error
        if len(fields) != len(names):
            problem = f"must have {len(names)} fields ({', '.join(names)}), but has {len(fields)}"
            raise BadRecord(f"{record.where} {problem}.", reason="bad_row")
        return dict(zip(names, fields, strict=True))

    def _string(self, item: Mapping[str, Any], key: str, record: Record) -> str:
        with self._read(record):
            return read_text(item[key], key)

    def _messages(self, turns: Any, record: Record) -> list[Message]:
        with self._read(record):
            return read_messages(turns, self._keys)

    def _prompt(self, prompt: str, answer: str, record: Record, item: Mapping[str, Any]) -> list[Example]:
        keys = self._keys
        extra = self._string(item, keys.input, record) if item.get(keys.input) else ""
        system = self._system(item, record)
        joined = f"{prompt}\n\n{extra}" if extra else prompt
        if self._pairs_are_plain:
            return _listed(self._pair(f"{system}\n\n{joined}" if system else joined, answer, record))
        if not (prompt.strip() and answer.strip()):
            return []
        alpaca = isinstance(self.template, AlpacaTemplate) and not system
        question = AlpacaTemplate.question(prompt, extra) if alpaca else [Message("user", joined)]
        if system:
            question.insert(0, Message("system", system))
        return self._conversation([*question, Message("assistant", answer)], record, item)

    def _system(self, item: Mapping[str, Any], record: Record) -> str:
        key = self._keys.system
        return self._string(item, key, record) if key and item.get(key) else ""

    def _with_system(self, messages: list[Message], item: Mapping[str, Any], record: Record) -> list[Message]:
        """Turns with the system prompt of the object before them.

        Raises:
            BadRecord: They have one of their own.
        """
        system = self._system(item, record)
        if not system:
            return messages
        if any(message.role == "system" for message in messages):
            raise self._bad(record, f"has a system prompt under '{self._keys.system}', and another among its turns")
        return [Message("system", system), *messages]

    def _conversation(self, messages: Sequence[Message], record: Record, item: Mapping[str, Any]) -> list[Example]:
        """The examples of a conversation: one for each of its training texts."""
        if self.task == "seq2seq":
            raise self._bad(record, "is a conversation, which only a language model can be trained on")
        if not any(message.content.strip() for message in messages):
            return []
        if self.template is None:
            self.template = self._open_template(DEFAULT_TEMPLATE)
        template, mask = self.template, self.trained
        with self._read(record):
            variables = read_variables(item, template.inputs, self._keys)
        self._note_unread(variables, template)
        try:
            texts = template.training_texts(mask.mark(messages), variables=variables)
        except (DataError, ConfigError) as error:
            raise self._bad(record, f"does not fit the chat template: {error.message}", hint=error.hint) from error
        if len(texts) > 1:
            log_once(
                f"Corpus '{self.name}': the chat template changes earlier messages when a conversation continues, so a "
                "conversation becomes several examples. Each trains its answers in the context that the model sees "
                "when it has to give them."
            )
        return [
            Example(
                src=segments,
                corpus=self.name,
                line=record.line,
                path=record.paths[0],
                closed=bool(template.stop_tokens),
                train_end=mask.end_of_text(is_last=number == len(texts) - 1),
                part=number,
            )
            for number, segments in enumerate(mask.mark_ends(texts, messages, template.stop_tokens))
        ]

    def _note_unread(self, variables: Mapping[str, Any], template: Template) -> None:
        for name in variables.keys() - template.inputs:
            log_once(
                f"Corpus '{self.name}' has '{name}' for its chat template, which does not read it.",
                level=logging.WARNING,
            )

    @contextmanager
    def _read(self, record: Record) -> Iterator[None]:
        """Report a wrong part of a record, which the error does not name."""
        try:
            yield
        except DataError as error:
            raise self._bad(record, error.message, hint=error.hint) from error

    def _bad(self, record: Record, problem: str, *, hint: str | None = None) -> BadRecord:
        return BadRecord(f"{record.where} {problem}.", reason="bad_record", hint=hint)


def _listed(example: Example | None) -> list[Example]:
    return [] if example is None else [example]
