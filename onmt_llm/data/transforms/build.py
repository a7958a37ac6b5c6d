"""Build the transforms of a corpus or of a model's inputs from their names and options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pydantic import ValidationError

from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.config.section import Section
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.transforms.tokenize import Tokenize, default_tokenize
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext
from onmt_llm.errors import ConfigError
from onmt_llm.text.codec import Codec
from onmt_llm.text.tokenizers.base import Tokenizer


def sections() -> dict[str, type[Section]]:
    """The option sections of all transforms, by section name."""
    return {transform.section: transform.Config for transform in map(TRANSFORMS.get, TRANSFORMS)}


def build_transforms(
    names: Sequence[str], options: Mapping[str, Section], corpus: CorpusConfig, context: TransformContext
) -> list[Transform]:
    """The transforms of a corpus, in order, with exactly one tokeniser among them.

    If the list has no tokeniser, the checkpoint's (or splitting at spaces) is inserted before the first transform
    that counts or needs tokens, or at the end.

    Args:
        names: Names of transforms, as listed by the user.
        options: Option sections by `Transform.section`; a missing section means defaults.
        corpus: Options of the corpus; `CorpusConfig()` at inference.
        context: The model's text processing and the task.

    Raises:
        ConfigError: An unknown name, two tokenisers, a transform on the wrong side of the tokeniser, or wrong options.
    """
    for fault in faults(names):
        raise fault
    classes = [TRANSFORMS.get(name) for name in names]
    position = _tokenizer_position(classes)
    built: list[Transform] = []
    for place, each in enumerate([*classes, None]):
        if place == position and not (each and each.tokenizes):
            built.append(default_tokenize(context))
            context = _behind(built[-1], context)
        if each is None:
            break
        built.append(each.build(_config(each, options, corpus), corpus, context))
        context = _behind(built[-1], context)
    return built


def inference_transforms(
    names: Sequence[str], options: Mapping[str, Section], context: TransformContext
) -> tuple[list[Transform], list[Transform]]:
    """The transforms that apply to prompts at inference: those before and those after the tokeniser.

    A tokeniser in the list marks the position of the checkpoint's tokeniser; without one, it comes last.
    """
    classes = [TRANSFORMS.get(name) for name in names]
    position = next((index for index, transform in enumerate(classes) if transform.tokenizes), len(classes))
    text, tokens = (
        [
            each.build(options.get(each.section, each.Config()), CorpusConfig(), known)
            for each in part
            if each.at_inference
        ]
        for part, known in (
            (classes[:position], replace(context, tokenizer=None, src_tokenizer=None)),
            (classes[position + 1 :], context),
        )
    )
    return text, tokens


def unknown_fixed_tokens(names: Sequence[str], options: Mapping[str, Section], codec: Codec) -> list[str]:
    """Words that these transforms put into prompts and answers at inference, and that the model does not know."""
    found: dict[str, None] = {}
    on_tokens = False
    for transform in map(TRANSFORMS.get, names):
        if transform.at_inference:
            config = options.get(transform.section, transform.Config())
            tokenizers = (codec.src_tokenizer, codec.tokenizer)
            found.update(dict.fromkeys(transform.fixed_tokens(config, tokenizers, on_tokens=on_tokens)))
        on_tokens |= transform.tokenizes
    return [token for token in found if token not in codec.vocab and token not in codec.src_vocab]


def faults(names: Sequence[str]) -> Iterator[ConfigError]:
    """All errors in a list of transforms: unknown names, two tokenisers, a transform on the wrong side."""
    classes = []
    for name in names:
        try:
            classes.append(TRANSFORMS.get(name))
        except ConfigError as error:
            yield error
    tokenizers = [transform.name for transform in classes if transform.tokenizes]
    if len(tokenizers) > 1:
        yield ConfigError(f"`transforms` must list at most one tokeniser, but lists {' and '.join(tokenizers)}.")
    if len(tokenizers) > 1 or len(classes) < len(names):
        return
    position = _tokenizer_position(classes)
    sentence = "Transform '{}' must come {} the tokeniser in `transforms`, but comes {} it."
    for transform in classes[position + 1 :]:
        if transform.needs_text and tokenizers:
            yield ConfigError(sentence.format(transform.name, "before", "after"))
        elif transform.needs_text:
            first = f"'{classes[position].name}', before which texts are tokenised"
            yield ConfigError(f"Transform '{transform.name}' must come before {first}, but comes after it.")
    for transform in classes[:position]:
        if transform.needs_tokens:
            yield ConfigError(sentence.format(transform.name, "after", "before"))


def _tokenizer_position(classes: Sequence[type[Transform]]) -> int:
    """Position of the tokeniser, or the position to insert the default one."""
    for index, transform in enumerate(classes):
        if transform.tokenizes:
            return index
    counting = (index for index, each in enumerate(classes) if each.counts_tokens or each.needs_tokens)
    return next(counting, len(classes))


def _behind(transform: Transform, context: TransformContext) -> TransformContext:
    """The context of the following transforms: after a tokeniser, it holds that tokeniser."""
    if not isinstance(transform, Tokenize):
        return context
    return replace(context, tokenizer=transform.tgt, src_tokenizer=transform.src)


def _config(transform: type[Transform], options: Mapping[str, Section], corpus: CorpusConfig) -> Section:
    """A transform's options; options of the corpus override the global ones.

    Raises:
        ConfigError: A value of the corpus is invalid, or it sets its own tokeniser options.
    """
    config = options.get(transform.section, transform.Config())
    own = {name: value for name, value in corpus.options.items() if name in transform.Config.model_fields}
    if not own:
        return config
    if transform.tokenizes:
        raise ConfigError(f"'{next(iter(own))}' must be the same for all corpora, but one has its own.")
    try:
        return transform.Config.model_validate({**config.model_dump(exclude_unset=True), **own})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"Option {first['loc'][0]} of a corpus: {first['msg']}, but is {first['input']!r}."
        ) from error


def added_tokens(
    corpora: Mapping[str, CorpusConfig],
    data: DataConfig,
    *,
    in_text: bool = False,
    tokenizers: Sequence[Tokenizer] = (),
) -> list[str]:
    """Tokens that the transforms of these corpora add to examples, each once.

    Args:
        corpora: By name.
        data: Options of all corpora.
        in_text: Only those that are added to text and that the tokeniser must keep whole.
        tokenizers: Those of both sides; they decide which words of prefixes and suffixes are tokens.
    """
    found: dict[str, None] = {}
    for corpus in corpora.values():
        on_tokens = False
        for name in data.transforms_of(corpus):
            transform = TRANSFORMS.get(name)
            config = _config(transform, data.transform_options, corpus)
            if transform.inserts_text or not in_text:
                found.update(dict.fromkeys(transform.added_tokens(config, corpus)))
            if not in_text:
                found.update(dict.fromkeys(transform.fixed_tokens(config, tokenizers, on_tokens=on_tokens)))
            on_tokens |= transform.tokenizes
    return list(found)


def check_added_tokens(spec: PipelineSpec) -> None:
    """Refuse a vocabulary without the tokens that transforms add.

    Raises:
        ConfigError: A token is missing.
    """
    codec = spec.codec
    in_text = added_tokens(spec.corpora, spec.data, in_text=True)
    added = added_tokens(spec.corpora, spec.data, tokenizers=(codec.src_tokenizer, codec.tokenizer))
    needed = [token for token in added if token not in in_text]
    vocabs = [codec.vocab, codec.src_vocab]
    missing = [token for token in needed if all(token not in vocab for vocab in vocabs)]
    if missing:
        raise ConfigError(
            f"The vocabulary must hold the tokens that the transforms put in, but lacks {', '.join(missing)}.",
            hint="a new model gets them automatically, a trained one with update_vocab: true; or choose known tokens",
        )


def undo_all(transforms: Sequence[Transform], tokens: list[str]) -> str:
    """The text of a model's output: undo all transforms, in reverse order."""
    output: str | list[str] = tokens
    for transform in reversed(transforms):
        output = transform.undo(output)
    return output if isinstance(output, str) else " ".join(output)
