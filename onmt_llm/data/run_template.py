"""The chat template that the checkpoints of a run name, so that engines ask as the run has trained."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.config.model import Task
from onmt_llm.data.parsing.parser import DEFAULT_TEMPLATE, ExampleParser
from onmt_llm.data.readers import BadRecord, open_reader
from onmt_llm.data.spec import split_corpora
from onmt_llm.log import logger

_NO_LAYOUT = ""
"""Stands for the layout of an answer that follows its prompt directly."""
_MOST_SKIPPED = 1000
"""Records of a corpus that are searched for the first one that can be read."""


def run_template(data: DataConfig, *, own: str | None, task: Task) -> str | None:
    """The chat template of a run.

    The run may name it (`template`). Otherwise it is the one with which its corpora are trained. If they are trained
    with several, it must be that of the corpora that name none, since these follow the model's template when the run is
    resumed; if all name one, it is that of the largest weight.

    Args:
        data: Options of the corpora.
        own: The template that the model names already.
        task: What the model is for.

    Returns:
        Its name, if it is built in, or its file; None = the model's own, or none.

    Raises:
        ConfigError: There is no corpus for training.
        DataError: The first records of a corpus cannot be read.
    """
    if data.template is not None:
        return data.template
    corpora, _ = split_corpora(data.data)
    named = {name: corpus.template for name, corpus in corpora.items() if corpus.template}
    if own and not named:
        return None
    unnamed: dict[str, str] = {}
    for name, corpus in corpora.items():
        layout = None if name in named else _default_layout(name, corpus, data, task)
        if layout is not None:
            unnamed[name] = own or layout
    layouts = {**named, **unnamed}
    if not layouts:
        return None
    chosen = min(unnamed.values()) if unnamed else _heaviest(layouts, corpora)
    _log(layouts, chosen)
    return None if unnamed and own else chosen or None


def _heaviest(layouts: Mapping[str, str], corpora: Mapping[str, CorpusConfig]) -> str:
    """The template with the largest weight; the first one of several."""
    weights = dict.fromkeys(layouts.values(), 0.0)
    for name, layout in layouts.items():
        weights[layout] += corpora[name].weight
    return max(weights, key=weights.__getitem__)


def _default_layout(name: str, corpus: CorpusConfig, data: DataConfig, task: Task) -> str | None:
    """How a corpus that names no template is trained in a model without one, by its first record.

    Returns:
        The default template, for conversations; `_NO_LAYOUT`, for prompts with answers; None, for whole texts.
    """
    if not corpus.has_keys or corpus.path_tokens:
        return None
    parser = ExampleParser(name, corpus, data, task=task)
    reader = open_reader(name, corpus, max_bytes=data.max_record_bytes)
    try:
        for record in islice(iter(reader.read, None), _MOST_SKIPPED):
            try:
                examples = parser(record).examples
            except BadRecord:
                if data.on_bad_line == "error":
                    raise
                continue
            if examples:
                if parser.template is not None:
                    return DEFAULT_TEMPLATE
                return _NO_LAYOUT if examples[0].tgt else None
    finally:
        reader.close()
    return None


def _log(layouts: Mapping[str, str], chosen: str) -> None:
    """Log which template the checkpoints name, if it is not the one that all corpora name."""
    if len(set(layouts.values())) > 1:
        described = "; ".join(f"{name}: {layout or 'none'}" for name, layout in layouts.items())
        logger.warning(
            "The corpora are trained with several chat templates (%s), of which the checkpoints name %s; `template` "
            "sets another one, also for the corpora that name none.",
            *(described, chosen or "none"),
        )
    elif chosen:
        logger.info("The checkpoints name the chat template %s, with which the conversations are trained.", chosen)
