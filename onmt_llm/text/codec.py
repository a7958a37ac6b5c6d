"""`Codec`: the text side of a model: tokenisers, vocabularies, special tokens, chat template and stops.

Training, data preparation and every engine turn text into tokens and back with the same codec.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from onmt_llm.config.checkpoint import CONFIG_FILE, CheckpointConfig, read_config
from onmt_llm.config.model import Task
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.text.decoding import StreamDecoder, WithoutControlTokens
from onmt_llm.text.features import parse_defaults, split_text, spread
from onmt_llm.text.languages import PLACES, check_filled, fill, log_defaults
from onmt_llm.text.segment import Segment, tokenize_segments
from onmt_llm.text.templates.builtin import TEMPLATES, get_template
from onmt_llm.text.templates.markup import markup_tokens, with_markup
from onmt_llm.text.templates.message import Message, Template
from onmt_llm.text.tokenizers.base import Tokenizer
from onmt_llm.text.tokenizers.control_guard import ControlGuard, unguarded
from onmt_llm.text.tokenizers.open import open_tokenizer
from onmt_llm.text.vocab import Vocab

VOCAB_FILE = "vocab.txt"
SRC_VOCAB_FILE = "src_vocab.txt"
FEATURE_VOCAB_FILE = "src_feat{i}_vocab.txt"
"""Vocabulary of source feature i, counted from 0."""

_PADDED = 8
"""At most one in this many embedding rows may be without a token: some models pad to a multiple of 64 or 128."""


class Codec:
    """The text side of one model.

    Both tokenisers are wrapped in a `ControlGuard` with the special tokens and the template's control tokens, so that a
    new model's codec equals the one that is opened from its first checkpoint.

    Args:
        config: The checkpoint's configuration.
        vocab: The model's tokens.
        tokenizer: Splits text into tokens.
        template: Chat template, if the model has one.
        src_tokenizer: Tokeniser of the source side, if it differs.
        src_vocab: Vocabulary of the source side, if it differs.
        feature_vocabs: Vocabularies of the source features.
        directory: The directory of the files, for `files` and `copy_files`.

    Attributes:
        default_features: Features of source words that have none; may be set.
        stop: Stop strings, at which an answer ends.
        stop_tokens: Tokens at which an answer ends, including `eos`; all are in the vocabulary.
        languages: Codes of the requested source and target languages (`for_languages`).
        sequences: Tokens of sequences besides those of the text, with those of the languages as far as they are known.

    Raises:
        CheckpointError: A token of the template, or one of `stop_tokens`, is not in the vocabulary.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        vocab: Vocab,
        tokenizer: Tokenizer,
        *,
        template: Template | None = None,
        src_tokenizer: Tokenizer | None = None,
        src_vocab: Vocab | None = None,
        feature_vocabs: Sequence[Vocab] = (),
        directory: Path | None = None,
    ) -> None:
        specials, template = config.specials, with_markup(template, config.tokenizer, tokenizer, vocab)
        control = _control_tokens(config, template)
        self.config = config
        self.vocab = vocab
        self.src_vocab = src_vocab or vocab
        self.feature_vocabs = list(feature_vocabs)
        self.default_features: list[str] = []
        if config.src_feats_defaults:
            self.default_features = parse_defaults(config.src_feats_defaults, len(self.feature_vocabs))
        self.template = template
        self.tokenizer: Tokenizer = ControlGuard(unguarded(tokenizer), control)
        self.src_tokenizer: Tokenizer = self.tokenizer
        if src_tokenizer is not None:
            self.src_tokenizer = ControlGuard(unguarded(src_tokenizer), control)
        self.stop = _unique([*config.stop, *(template.stop if template else ())])
        ends = [token for token in (specials.eos,) if token is not None and token in vocab]
        own = (*template.stop_tokens, *template.next_turn_tokens) if template else ()
        self.stop_tokens = _unique([*ends, *config.stop_tokens, *own])
        self._directory = directory
        self._other_templates: dict[str, tuple[Template, Tokenizer]] = {}
        self._bos = specials.bos if specials.add_bos and config.model.is_decoder_only else None
        self.languages = "", ""
        self.sequences = fill(config.sequences, config.languages)
        _check_known(self.stop_tokens, vocab, "stop_tokens")
        if template:
            self._check_template(template, config.template)

    @classmethod
    def open(cls, directory: str | Path) -> Codec:
        """The codec of a checkpoint or release directory.

        Raises:
            CheckpointError: config.yaml is missing or wrong, or the parts do not match: a vocabulary does not have the
                length of the embedding, or lacks a special token.
            DataError: Vocabulary, tokeniser or template cannot be read.
        """
        directory = Path(directory)
        config = read_config(directory)
        tokenizer = open_tokenizer(config.tokenizer, directory)
        vocab = _open_vocab(directory, config, tokenizer)
        src_vocab = directory / SRC_VOCAB_FILE
        features = [directory / FEATURE_VOCAB_FILE.format(i=i) for i in range(len(config.model.src_features))]
        codec = cls(
            config,
            vocab,
            tokenizer,
            template=model_template(config, tokenizer, vocab, directory) if config.template else None,
            src_tokenizer=open_tokenizer(config.src_tokenizer, directory) if config.src_tokenizer else None,
            src_vocab=Vocab.read(src_vocab, config.specials) if src_vocab.is_file() else None,
            feature_vocabs=[Vocab.read(file, config.specials) for file in features],
            directory=directory,
        )
        codec._check_fits_model()
        return codec

    def _check_fits_model(self) -> None:
        """Refuse vocabularies that do not match the model."""
        model = self.config.model
        sides = [("vocab.txt", self.vocab, model.vocab_size)]
        if not model.is_decoder_only:
            sides.append(("the source vocabulary", self.src_vocab, model.encoder_vocab_size))
        for vocab, feature in zip(self.feature_vocabs, model.src_features, strict=True):
            sides.append(("the vocabulary of a source feature", vocab, feature.vocab_size))
        for what, vocab, rows in sides:
            if rows and not rows - rows // _PADDED <= len(vocab) <= rows:
                raise CheckpointError(
                    f"The vocabulary must have a token for every row of the embedding, but {what} of {self._directory} "
                    f"has {len(vocab):,} tokens for {rows:,} rows."
                )
        roles = [token for token in self.config.specials.model_dump().values() if isinstance(token, str)]
        _check_known(roles, self.vocab, "specials")
        _check_known(self.config.banned_tokens, self.vocab, "banned_tokens")
        sequences, languages = self.config.sequences, self.config.languages.tokens.values()
        for tokens, vocab in (
            ([*sequences.src_prefix, *sequences.src_suffix], self.src_vocab),
            (sequences.decoder_start, self.vocab),
        ):
            fixed = [token for token in tokens if token not in PLACES]
            _check_known(fixed, vocab, "sequences")
            _check_known(languages if len(fixed) < len(tokens) else (), vocab, "languages")

    @property
    def task(self) -> Task:
        """What the model is for: "lm" (decoder only) or "seq2seq"."""
        return "lm" if self.config.model.is_decoder_only else "seq2seq"

    @property
    def bos(self) -> str | None:
        """The token that training examples begin with; None if they begin without one."""
        specials = self.config.specials
        return specials.bos if specials.add_bos or self.task == "seq2seq" else None

    def for_languages(self, src: str = "", tgt: str = "") -> Codec:
        """The same codec for a source and a target language, by their codes; "" = the model's default.

        A model without tokens of languages takes any codes; transforms may depend on them.

        Raises:
            ConfigError: The model has no such language.
        """
        stored, languages = self.config.sequences, self.config.languages
        codec = copy.copy(self)
        codec.languages = src, tgt
        codec.sequences = fill(stored, languages, src=src, tgt=tgt)
        log_defaults(stored, languages, src=src, tgt=tgt)
        return codec

    @property
    def source_frame(self) -> tuple[list[str], list[str]]:
        """Tokens before and after those of an input: of a source, or of a text that a language model continues.

        Raises:
            ConfigError: They depend on a language that is not given (`for_languages`).
        """
        if self.task == "lm":
            return ([] if self._bos is None else [self._bos]), []
        sides = self.sequences.src_prefix, self.sequences.src_suffix
        prefix, suffix = (check_filled(side, self.config.languages) for side in sides)
        return prefix, suffix

    @property
    def start_tokens(self) -> list[str]:
        """Tokens that a target begins with, which the decoder is given; of a language model, those of a text.

        Raises:
            ConfigError: They depend on a language that is not given (`for_languages`).
        """
        start = self.sequences.decoder_start
        if self.task == "lm" or not start:
            return [] if self.bos is None else [self.bos]
        return check_filled(start, self.config.languages)

    @property
    def fixed_start(self) -> str | None:
        """The token that all targets begin with; None if it depends on the language, or if there is none."""
        first = next(iter(self.config.sequences.decoder_start), self.bos)
        return first if first in self.vocab else None

    @property
    def shares_vocab(self) -> bool:
        """Source and target have one vocabulary."""
        return self.src_vocab is self.vocab

    @property
    def shares_tokenizer(self) -> bool:
        """Source and target have one tokeniser."""
        return self.src_tokenizer is self.tokenizer

    def control_tokens(self, template: Template | None) -> frozenset[str]:
        """Tokens that no text of a corpus may be encoded into: special tokens and the template's control tokens."""
        return _control_tokens(self.config, template)

    def corpus_template(self, name: str) -> Template:
        """The template, built-in or from a file, that a corpus names.

        Raises:
            ConfigError: There is no such template, or the vocabulary lacks its control tokens.
        """
        config = self.config.model_copy(update={"template": name})
        template = model_template(config, self.tokenizer, self.vocab, Path())
        check_template(name, template, self.vocab)
        return template

    def encode(self, text: str) -> list[str]:
        """Tokens of a source text: in its frame (`bos` of a language model), with features if a model has some."""
        if self.feature_vocabs:
            text, features = split_text(text, len(self.feature_vocabs), self.default_features)
            return spread(self.src_tokenizer.encode(text), features)
        return self.framed(self.src_tokenizer.encode(text))

    def framed(self, tokens: list[str]) -> list[str]:
        """Tokens of an input in their frame (`source_frame`), unless they begin with its prefix already."""
        prefix, suffix = self.source_frame
        return [*prefix, *tokens, *suffix] if not prefix or tokens[: len(prefix)] != prefix else tokens

    def unframed(self, tokens: list[str]) -> list[str]:
        """Tokens of an input without their frame."""
        prefix, suffix = self.source_frame
        return tokens[len(prefix) : len(tokens) - len(suffix)] if tokens[: len(prefix)] == prefix else tokens

    def encode_segments(self, segments: Sequence[Segment], *, bos: bool = True) -> list[str]:
        """Tokens of the segments of one text, with `bos` first unless it is there already or not wanted."""
        return self._encode_segments(segments, self.tokenizer, bos=bos)

    def _encode_segments(self, segments: Sequence[Segment], tokenizer: Tokenizer, *, bos: bool) -> list[str]:
        parts = tokenize_segments(tokenizer, segments, bos=self.config.specials.bos)
        tokens = [token for part in parts for token in part]
        if bos and self._bos is not None and tokens[:1] != [self._bos]:
            return [self._bos, *tokens]
        return tokens

    def encode_chat(self, messages: Sequence[Message], *, template: str | None = None) -> list[str]:
        """Tokens of a conversation up to the start of the answer.

        Args:
            messages: The conversation; the last message is the user's.
            template: Name or file of a template to use instead of the checkpoint's.

        Raises:
            CheckpointError: The checkpoint has no template and none is given, or the given one has unknown tokens.
            DataError: The template refuses these messages.
        """
        if template is not None:
            layout, tokenizer = self._other_template(template)
        elif self.template is not None:
            layout, tokenizer = self.template, self.tokenizer
        else:
            raise CheckpointError(
                "A conversation needs a chat template, but the checkpoint names none.",
                hint="set `template` in its config.yaml, e.g. alpaca, and record that: onmt_llm_checkpoint seal",
            )
        return self._encode_segments(layout.render(messages, generation_prompt=True), tokenizer, bos=True)

    def chat_template(self, name: str) -> Template:
        """A template, built-in or from a file, to use instead of the checkpoint's; it is opened once.

        Raises:
            ConfigError: There is no such template.
            CheckpointError: The vocabulary lacks one of its control tokens.
        """
        return self._other_template(name)[0]

    def _other_template(self, name: str) -> tuple[Template, Tokenizer]:
        if name not in self._other_templates:
            config = self.config.model_copy(update={"template": name})
            layout = model_template(config, self.tokenizer, self.vocab, self._directory or Path())
            self._check_template(layout, name)
            self._other_templates[name] = layout, ControlGuard(self.tokenizer, layout.control_tokens)
        return self._other_templates[name]

    def _check_template(self, template: Template, name: str | None) -> None:
        own = template.control_tokens.difference(self.config.specials.model_dump().values())
        _check_known(own, self.vocab, f"chat template '{name}'")

    def decode(self, tokens: Iterable[str]) -> str:
        """The text of tokens, without control tokens."""
        control = self.tokenizer.control_tokens
        return self.tokenizer.decode([token for token in tokens if token not in control])

    def stream_decoder(self) -> StreamDecoder:
        """A streaming decoder for one answer; like `decode`, it leaves out control tokens."""
        return WithoutControlTokens(self.tokenizer.stream_decoder(), self.tokenizer.control_tokens)

    def files(self) -> list[Path]:
        """Vocabulary, tokeniser and template files: what a copy of the model needs besides weights and config.yaml."""
        if self._directory is None:
            return []
        specs = [self.config.tokenizer, self.config.src_tokenizer]
        features = [FEATURE_VOCAB_FILE.format(i=i) for i in range(len(self.feature_vocabs))]
        names = [VOCAB_FILE, SRC_VOCAB_FILE, *features, *(spec.file for spec in specs if spec), self.config.template]
        paths = [self._directory / name for name in _unique(name for name in names if name)]
        return [path for path in paths if path.is_file()]

    def copy_files(self, to_directory: str | Path) -> None:
        """Copy `files` to another directory, and config.yaml unless there is one already."""
        target = Path(to_directory)
        for file in self.files():
            name = file.relative_to(self._directory or file.parent)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / name)
        if self._directory is not None and not (target / CONFIG_FILE).exists():
            shutil.copyfile(self._directory / CONFIG_FILE, target / CONFIG_FILE)


def _open_vocab(directory: Path, config: CheckpointConfig, tokenizer: Tokenizer) -> Vocab:
    file = directory / VOCAB_FILE
    if file.is_file():
        return Vocab.read(file, config.specials)
    tokens = tokenizer.vocab_tokens()
    if tokens is None:
        raise CheckpointError(f"A checkpoint must have a {VOCAB_FILE}, but there is none in {directory}.")
    return Vocab(tokens, config.specials)


def model_template(config: CheckpointConfig, tokenizer: Tokenizer, vocab: Vocab, directory: Path) -> Template:
    """The template that a model's configuration names: a built-in one, or a file (beside the checkpoint or not)."""
    name = config.template
    assert name is not None
    file = directory / name if (directory / name).is_file() else Path(name)
    if name in TEMPLATES or not file.is_file():
        return get_template(name, specials=config.specials)
    source = file.read_text(encoding="utf-8", errors="replace")
    control = {
        *tokenizer.control_tokens,
        *config.stop_tokens,
        *markup_tokens(source, config.tokenizer, tokenizer, vocab),
    }
    return get_template(file, specials=config.specials, control_tokens=control)


def check_template(name: str, template: Template, vocab: Vocab) -> None:
    """Refuse a template that a model cannot be trained with.

    Raises:
        ConfigError: The vocabulary lacks its control tokens.
    """
    unknown = sorted(token for token in template.control_tokens if token not in vocab)
    if unknown:
        raise ConfigError(
            f"The vocabulary must hold the control tokens of the template '{name}', but lacks {', '.join(unknown)}.",
            hint="the template alpaca needs none",
        )


def _control_tokens(config: CheckpointConfig, template: Template | None) -> frozenset[str]:
    specials, sequences = config.specials, config.sequences
    roles = {token for token in (specials.bos, specials.eos, specials.pad) if token}
    roles.update(*(tokens for _, tokens in sequences), config.languages.tokens.values())
    roles.update(template.control_tokens if template else ())
    return frozenset(roles.difference(PLACES))


def _check_known(tokens: Iterable[str], vocab: Vocab, whose: str) -> None:
    unknown = sorted(token for token in tokens if token not in vocab)
    if unknown:
        raise CheckpointError(
            f"The tokens of the checkpoint's {whose} must be in its vocabulary, but {', '.join(unknown)} is not.",
            hint="correct config.yaml and record that: onmt_llm_checkpoint seal; alpaca needs no tokens of its own",
        )


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))
