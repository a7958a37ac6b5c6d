"""`open_engine`: a model that answers texts, with the options of `onmt_llm_translate` as keywords."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onmt_llm.api.options import Config, given, load_options
from onmt_llm.cli.checks import inference_problems
from onmt_llm.cli.inference import open_configured_engine
from onmt_llm.cli.inputs import missing_options
from onmt_llm.cli.jobs import load_job
from onmt_llm.cli.lines.answers import answer_prompts, phrase_table, prompt_builder
from onmt_llm.cli.outputs import Paths
from onmt_llm.cli.run import CheckedJob, perform
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.section import set_options
from onmt_llm.config.translate import TranslateConfig
from onmt_llm.errors import ConfigError, Problem
from onmt_llm.generate.engine import Delta, Engine, Hypothesis
from onmt_llm.generate.session import ChatSession
from onmt_llm.text.placeholders import from_line
from onmt_llm.text.prompts import encode_prompt

if TYPE_CHECKING:
    import numpy as np

    from onmt_llm.text.codec import Codec

_OF_FILES = ("src", "tgt", "tgt_file_prefix", "output", "resume", "with_score", "verbose")
"""Options of `onmt_llm_translate` about its files."""
_OF_CALLS = frozenset({"src_lang", "tgt_lang", "template", "transforms", "phrase_table", "batch_size", "batch_type"})
"""Options outside the section `generation` that each call may set; the others take effect when a model is opened."""


def open_engine(
    model: str | Path | Sequence[str | Path] | None = None, *, config: Config = None, **options: Any
) -> TextEngine:
    """Open a model to answer texts: a CTranslate2 release with CTranslate2, a checkpoint or adapter with PyTorch.

    Examples:
        >>> engine = onmt_llm.open_engine("llama", max_length=20)
        >>> engine
        TextEngine('llama', TorchEngine: decoder-only, 0+2 layers, width 32, vocabulary 259)

    Args:
        model: Checkpoint, adapter or release; several checkpoints with one vocabulary form an ensemble.
        config: Path of a YAML file for `onmt_llm_translate`, or a dict of options.
        **options: Options of `onmt_llm_translate` by name. `device`, `precision`, `compute_type`, `threads` ... are
            for the model, `max_length`, `beam_size`, `template` ... are defaults of the calls.

    Raises:
        OnmtLlmError: Mistakes in the options; there is no usable model.
    """
    unused = [name for name in _OF_FILES if name in options]
    if unused:
        raise ConfigError(
            f"'{unused[0]}' must be left out of open_engine, which reads and writes no files of texts.",
            hint='engine.translate(["a text", "another"]) answers texts',
        )
    return TextEngine(load_options(_JOB, config, {**given(model=model), **options}))


def _problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    yield from missing_options(loaded, "inference", ("model",), 'onmt_llm.open_engine("CHECKPOINT")')
    yield from inference_problems(loaded)


_JOB = CheckedJob("onmt_llm_translate", lambda loaded: Paths(), _problems)


class TextEngine:
    """A model that answers texts; `open_engine` returns it.

    It wraps an engine (`generate.engine.Engine`) and is one itself, so it takes tokens too. Keyword options of a call
    are those of `onmt_llm_translate`; they override those that were given to `open_engine`.

    Examples:
        >>> engine = onmt_llm.open_engine("llama")
        >>> type(engine.ask("Hello", max_length=8))
        <class 'str'>
        >>> engine.ask("Hello", max_lenght=8)
        Traceback (most recent call last):
        onmt_llm.errors.ConfigError: 'max_lenght' is not a known option: did you mean 'max_length'?

    Args:
        loaded: The options of `onmt_llm_translate`, with a model.

    Raises:
        OnmtLlmError: There is no usable model.
    """

    def __init__(self, loaded: Loaded[Any]) -> None:
        self._loaded = loaded
        self._engine: Engine = perform(open_configured_engine, loaded)

    def __repr__(self) -> str:
        models = ", ".join(map(repr, self._loaded.job.inference.model))
        return f"TextEngine({models}, {type(self._engine).__name__}: {self.codec.config.model.summary})"

    @property
    def codec(self) -> Codec:
        """Vocabulary, tokeniser and template of the model."""
        return self._engine.codec

    def ask(self, text: str, **options: Any) -> str:
        """Answer one text. If the model has a chat template, the text is put into it.

        Examples:
            >>> engine.ask("Hello", max_length=8) == engine.ask("Hello", max_length=8)
            True

        Args:
            text: A message to a chat model, the beginning of a text, or the source of a translation.
            **options: Decoding options, `template` ...: `template=None` leaves the text as it is.

        Returns:
            The best answer.

        Raises:
            ConfigError: An option is unknown, wrong, or has to be given to `open_engine`.
        """
        loaded = self._with("ask", options)
        engine = self._between(loaded)
        return engine.generate([_prompt("ask", text, engine.codec, loaded)], loaded.job.generation)[0][0].text

    def stream_text(self, text: str, *, should_stop: Callable[[], bool] | None = None, **options: Any) -> Iterator[str]:
        """Answer one text piece by piece; together, the pieces are what `ask` returns (without beam search).

        Examples:
            >>> pieces = list(engine.stream_text("Hello", max_length=8))
            >>> "".join(pieces) == engine.ask("Hello", max_length=8)
            True

        Args:
            text: As in `ask`.
            should_stop: Called after each token, and between pieces of a long prompt; True ends the answer.
            **options: As in `ask`.

        Raises:
            ConfigError: As in `ask`.
        """
        loaded = self._with("stream_text", options)
        engine = self._between(loaded)
        prompt = _prompt("stream_text", text, engine.codec, loaded)
        deltas = engine.stream(prompt, loaded.job.generation, should_stop=should_stop)
        return (delta.text for delta in deltas if delta.text)

    def translate(self, texts: Iterable[str], **options: Any) -> list[str]:
        """Answer texts as `onmt_llm_translate` answers the lines of a file; `template="auto"` applies a chat template.

        Examples:
            >>> len(engine.translate(["Hello", "", "How are you?"], beam_size=2, max_length=8))
            3

        Args:
            texts: Sources of translations, or beginnings of texts. An empty text has an empty answer.
            **options: Decoding options, `batch_size`, `template` ...

        Returns:
            The best answer to each text, in order.

        Raises:
            ConfigError: As in `ask`; or `texts` is no list of texts.
        """
        given_texts = _listed(texts)
        if given_texts is None or not all(isinstance(text, str) for text in given_texts):
            raise ConfigError(
                f"translate must be given a list of texts, but got {texts!r:.60}.",
                hint='engine.translate(["a text"]) returns a list, engine.ask("a text") one answer',
            )
        return [answers[0].text for answers in self.generate(given_texts, **options)]

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[str]],
        options: GenerationConfig | None = None,
        *,
        prefixes: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        **changes: Any,
    ) -> list[list[Hypothesis]]:
        """Answer prompts, with scores and up to `n_best` answers each; as `translate` in everything else.

        Examples:
            >>> engine.generate("Hello", n_best=2, beam_size=2, max_length=1)[0][0].finish_reason
            'length'

        Args:
            prompts: Texts, one text, or prompts as lists of tokens (`engine.codec.encode`).
            options: Replaces all decoding options.
            prefixes: Texts, or lists of tokens, with which the answers start: one for each prompt.
            **changes: Options by name.

        Returns:
            For each prompt its answers, best first.

        Raises:
            ConfigError: As in `ask`.
        """
        loaded = self._with("generate", changes, options)
        listed = _listed([prompts] if isinstance(prompts, str) else prompts)
        texts = [prompt for prompt in listed or () if isinstance(prompt, str)]
        if listed is None or len(texts) not in (0, len(listed)):
            raise ConfigError(f"generate must be given texts, or lists of tokens, but got {prompts!r:.60}.")
        encode = self.codec.tokenizer.encode
        if isinstance(prefixes, str):
            prefixes = [prefixes]
        forced = prefixes and [encode(from_line(each)) if isinstance(each, str) else each for each in prefixes]
        config: TranslateConfig = loaded.job
        engine = self._between(loaded)
        if texts:
            lines = prompt_builder(engine.codec, loaded)(texts)
            table = phrase_table(config)
            return [list(answers) for answers in answer_prompts(engine, lines, config, prefixes=forced, table=table)]
        return engine.generate(
            listed,
            config.generation,
            batch_size=config.engine.batch_size,
            batch_type=config.engine.batch_type,
            prefixes=forced,
        )

    def stream(
        self,
        prompt: str | Sequence[str],
        options: GenerationConfig | None = None,
        *,
        should_stop: Callable[[], bool] | None = None,
        **changes: Any,
    ) -> Iterator[Delta]:
        """Answer one prompt piece by piece, with the number of tokens of each piece and the reason for the end.

        Examples:
            >>> list(engine.stream("Hello", max_length=1))[-1].finish_reason
            'length'

        Args:
            prompt: A text, or a list of tokens.
            options: Replaces all decoding options.
            should_stop: Called after each token, and between pieces of a long prompt; True ends the answer.
            **changes: Options by name.

        Raises:
            ConfigError: As in `ask`.
        """
        loaded = self._with("stream", changes, options)
        engine = self._between(loaded)
        template = loaded.job.inference.template
        tokens = encode_prompt(prompt, engine.codec, template) if isinstance(prompt, str) else prompt
        return engine.stream(tokens, loaded.job.generation, should_stop=should_stop)

    def chat(self, *, system: str | None = None, max_context_length: int | None = None, **options: Any) -> ChatSession:
        """A conversation with the model.

        Examples:
            >>> session = engine.chat(max_length=8)
            >>> answer = session.ask("Hello")
            >>> session
            ChatSession(2 messages)

        Args:
            system: System prompt, if the template has a place for one.
            max_context_length: Maximum number of tokens of prompt and answer together.
            **options: Decoding options, `template` ...

        Raises:
            ConfigError: As in `ask`; there is no room for a prompt.
        """
        loaded = self._with("chat", options)
        return ChatSession(
            self._between(loaded),
            loaded.job.generation,
            template=loaded.job.inference.template,
            system=system,
            **given(max_context_length=max_context_length),
        )

    def score(
        self, sequences: Sequence[Sequence[str]], *, sources: Sequence[Sequence[str]] | None = None
    ) -> list[list[float]]:
        """See `Engine.score`."""
        for sequence in (*sequences, *(sources or ())):
            _refuse_text(sequence)
        return self._engine.score(sequences, sources=sources)

    def logits(self, sequence: Sequence[str], *, source: Sequence[str] | None = None) -> np.ndarray:
        """See `Engine.logits`."""
        _refuse_text(sequence)
        return self._engine.logits(sequence, source=source)

    def _between(self, loaded: Loaded[Any]) -> Engine:
        """The engine for the languages of a call."""
        inference = loaded.job.inference
        return self._engine.for_languages(inference.src_lang, inference.tgt_lang)

    def _with(self, method: str, changes: Mapping[str, Any], generation: GenerationConfig | None = None) -> Loaded[Any]:
        """The options of a call.

        Args:
            method: Its name, for messages.
            changes: Its keywords.
            generation: Decoding options, instead of those given to `open_engine`.

        Raises:
            ConfigError: A keyword is unknown, wrong, or has no effect on a model that is open.
        """
        if generation is None and not changes:
            return self._loaded
        job: TranslateConfig = self._loaded.job
        if generation is not None:
            job = job.model_copy(update={"generation": generation})
        values = {**set_options(job), **set_options(self._loaded.options), **changes}
        loaded = load_job("onmt_llm_translate", [], values=values)
        for section in ("inference", "engine", "integrity"):
            before, now = dict(getattr(job, section)), dict(getattr(loaded.job, section))
            for name in now:
                if now[name] != before[name] and name not in _OF_CALLS:
                    raise ConfigError(f"'{name}' must be given to open_engine, but is given to {method}.")
        return loaded


def _prompt(method: str, text: str, codec: Codec, loaded: Loaded[Any]) -> list[str]:
    """Tokens of a text in the chat template, if there is one; none for an empty text."""
    if not isinstance(text, str):
        raise ConfigError(
            f"{method} must be given a text, but got {text!r:.60}.", hint="engine.translate answers a list of texts"
        )
    inference = loaded.job.inference
    has_template = "template" not in inference.model_fields_set and codec.template is not None
    return encode_prompt(text, codec, "auto" if has_template else inference.template) if text.strip() else []


def _listed(values: Any) -> list[Any] | None:
    """The items of a list or another iterable that is no text; None if it is none."""
    return list(values) if isinstance(values, Iterable) and not isinstance(values, str | bytes) else None


def _refuse_text(sequence: Sequence[str]) -> None:
    if isinstance(sequence, str):
        raise ConfigError(
            f"A sequence to be scored must be a list of tokens, but is the text {sequence!r:.60}.",
            hint="engine.codec.encode(text) splits a text into tokens",
        )
