"""Answers to input lines: their prompts, the transforms of inference, the phrase table, and references beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from onmt_llm.cli.lines.chunks import LineChunk
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.translate import TranslateConfig
from onmt_llm.data.transforms.affix import Prefix
from onmt_llm.data.transforms.build import inference_transforms, unknown_fixed_tokens
from onmt_llm.data.transforms.transform import Transform, TransformContext
from onmt_llm.errors import ConfigError
from onmt_llm.generate.alignment import read_phrase_table, replace_unknown
from onmt_llm.generate.scoring import score_pairs
from onmt_llm.log import logger
from onmt_llm.text.features import parse_defaults
from onmt_llm.text.placeholders import from_line
from onmt_llm.text.prompts import encode_prompt

if TYPE_CHECKING:
    from onmt_llm.generate.engine import Engine
    from onmt_llm.generate.line_prompts import Answers, LinePrompts
    from onmt_llm.text.codec import Codec


def phrase_table(config: TranslateConfig) -> dict[str, str]:
    """The phrase table that the options name, or an empty one."""
    return read_phrase_table(config.inference.phrase_table) if config.inference.phrase_table else {}


def prompt_builder(codec: Codec, loaded: Loaded[Any]) -> Callable[..., LinePrompts]:
    """A function that makes prompts of input lines; an empty line has no tokens, and its answer is empty.

    It takes the lines and, as `first`, the place of the first of them in the whole input.
    """
    from onmt_llm.generate.line_prompts import LinePrompts

    config: TranslateConfig = loaded.job
    if config.inference.src_feats_defaults is not None:
        codec.default_features = parse_defaults(config.inference.src_feats_defaults, len(codec.feature_vocabs))
    context = TransformContext(codec, tokenizer=codec.tokenizer, src_tokenizer=codec.src_tokenizer)
    text, tokens = inference_transforms(config.inference.transforms, loaded.options, context)
    needs_lines = {
        **config.inference.model_dump(include={"tgt", "tgt_file_prefix"}),
        **config.generation.model_dump(include={"replace_unk", "report_align"}),
    }
    wants = next((name for name, value in needs_lines.items() if value), None)
    if wants and any(transform.needs_neighbours for transform in (*text, *tokens)):
        raise ConfigError(
            f"`{wants}` must not be given where `transforms` joins lines (docify), but is.",
            hint="leave one of them out",
        )
    unknown = unknown_fixed_tokens(config.inference.transforms, loaded.options, codec)
    if unknown:
        logger.warning("The transforms put in %s, but the model knows only <unk> in its place.", ", ".join(unknown))
    encode = partial(encode_prompt, codec=codec, template=config.inference.template)
    begin = _target_prefix(text, tokens, codec)
    return partial(LinePrompts, text=text, tokens=tokens, encode=encode, codec=codec, target_prefix=begin)


def _target_prefix(text: Sequence[Transform], tokens: Sequence[Transform], codec: Codec) -> list[str]:
    """The tokens that the transform `prefix` puts before each target, unless the model's targets start with them."""
    found = [codec.tokenizer.encode(each.tgt) for each in text if isinstance(each, Prefix) and each.tgt]
    found += [each.tgt.split() for each in tokens if isinstance(each, Prefix)]
    begin = [token for part in found for token in part]
    return [] if begin and codec.start_tokens[-len(begin) :] == begin else begin


def answer_prompts(
    engine: Engine,
    questions: LinePrompts,
    config: TranslateConfig,
    *,
    prefixes: Sequence[Sequence[str]] | None = None,
    table: dict[str, str],
) -> Answers:
    """The hypotheses for each input line.

    Args:
        engine: Answers them.
        questions: The prompts of the lines.
        config: How to search, in which batches.
        prefixes: Forced beginnings of the answers.
        table: Phrase table, for `replace_unk`.
    """
    generate = partial(
        engine.generate,
        options=config.generation,
        batch_size=config.engine.batch_size,
        batch_type=config.engine.batch_type,
    )
    prompts = questions.prompts
    answers = generate(prompts, prefixes=prefixes, places=questions.places)
    if config.generation.replace_unk:
        answers = [
            [replace_unknown(hypothesis, prompt, table, engine.codec) for hypothesis in hypotheses]
            for prompt, hypotheses in zip(prompts, answers, strict=True)
        ]
    return questions.by_line(answers, lambda further, places: generate(further, places=places))


def answer_chunk(
    engine: Engine, chunk: LineChunk, config: TranslateConfig, table: dict[str, str]
) -> tuple[Answers, list[float] | None]:
    """The hypotheses for each line of a chunk, and the scores of its references if they are no prefixes."""
    encode = engine.codec.tokenizer.encode
    begin = chunk.prompts.target_prefix
    targets = None if chunk.references is None else [[*begin, *encode(from_line(line))] for line in chunk.references]
    if targets is None and config.inference.tgt_file_prefix:
        targets = [list(begin) for _ in chunk.lines]
    forced, scored = (targets, None) if config.inference.tgt_file_prefix else (None, targets)
    answers = answer_prompts(engine, chunk.prompts, config, prefixes=forced, table=table)
    if scored is None:
        return answers, None
    return answers, [score.log_prob for score in score_pairs(engine, chunk.prompts.prompts, scored)]
