"""Checks of a job before anything slow is imported.

Their problems are reported together with those of the schema (`config.loading.load`), so that a user corrects them all
at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.directory import resolve_path
from onmt_llm.cli.inputs import (
    corpus_files,
    is_missing_file,
    missing_files,
    missing_models,
    option_files,
    subword_files,
)
from onmt_llm.config.checkpoint import CONFIG_FILE, CheckpointConfig, read_config
from onmt_llm.config.data import CorpusConfig, is_for_validation
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.overrides import check_task, conflicts
from onmt_llm.config.train import AUTO, TrainConfig
from onmt_llm.data.readers import open_reader
from onmt_llm.data.selection.select import check_selection
from onmt_llm.data.transforms.build import faults
from onmt_llm.data.transforms.subword import tokenizer_specs
from onmt_llm.data.transforms.transform import TRANSFORMS
from onmt_llm.errors import ConfigError, OnmtLlmError, Problem
from onmt_llm.registry import Registry, nearest
from onmt_llm.text.new_vocab import no_vocabulary
from onmt_llm.text.templates.builtin import TEMPLATES
from onmt_llm.text.tokenizers.open import brings_vocabulary
from onmt_llm.training.checks import check_in_backward, check_reference, check_validation

MODELS = {"start": ("train_from", "init_from"), "preference": ("reference_model",), "loss": ("lm_prior_model",)}
"""Training options that name models, by section."""
_VOCABULARY_OPTIONS = frozenset(
    {"data", "transforms", "train_from", "init_from", "src_vocab", "tgt_vocab", "share_vocab", "encoder_layers"}
    | {"model_task", "encoder_type", "decoder_type", "src_subword_model", "tgt_subword_model", "plugins"}
)
"""Options that decide which vocabularies a new model must have."""


def training_problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    """Problems of a training run: its corpora, its transforms, and the checkpoint that it starts from."""
    config: TrainConfig = loaded.job
    yield from corpora_problems(loaded)
    yield from missing_files(loaded, [*corpus_files(loaded), *subword_files(loaded)])
    yield from missing_files(loaded, option_files(loaded, "embeddings", _EMBEDDINGS))
    new = starts_from_new_weights(config)
    if new or config.start.update_vocab:
        yield from _vocabulary_problems(loaded, required=new)
    if new and not {"train_from", "init_from"} & loaded.invalid:
        for sentence in config.missing_base():
            yield Problem(f"{sentence}.", loaded.place_of(sentence))
    for section, names in MODELS.items():
        named = [name for name in names if getattr(getattr(config, section), name) != AUTO]
        yield from missing_models(loaded, section, named, releases=section == "loss")
    yield from _architecture_problems(loaded)
    yield from _option_problems(loaded)


_EMBEDDINGS = ("both_embeddings", "src_embeddings", "tgt_embeddings")


def corpora_problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    """Problems of the corpora other than missing files: conflicting paths, transforms, templates."""
    data = loaded.job.corpora
    if "data" in loaded.invalid:
        pass
    elif not data.data:
        hint = "data: {my_corpus: {path_src: train.txt}}"
        yield Problem("'data' must name at least one corpus, but names none.", hint=hint)
    elif all(map(is_for_validation, data.data)):
        sentence = f"`data` must name at least one corpus for training, but names only {', '.join(data.data)}"
        yield Problem(f"{sentence}, for validation.", loaded.where("data"))
    if any(corpus.transforms is None for corpus in data.data.values()) or not data.data:
        yield from transform_problems(loaded, data.transforms, ("transforms",))
    yield from template_problems(loaded, data.template, ("template",))
    for name, corpus in data.data.items():
        yield from transform_problems(loaded, corpus.transforms or (), ("data", name, "transforms"))
        yield from template_problems(loaded, corpus.template, ("data", name, "template"))
        if "data" not in loaded.invalid:
            yield from _path_problems(loaded, name, corpus)


def _path_problems(loaded: Loaded[Any], name: str, corpus: CorpusConfig) -> Iterator[Problem]:
    if corpus.path_tokens or corpus.path_packed:
        return
    try:
        check_selection(name, corpus)
        open_reader(name, corpus)
    except OnmtLlmError as error:
        if not is_missing_file(loaded, name, corpus, error):
            yield Problem.of(error, loaded.where("data", name))


def transform_problems(loaded: Loaded[Any], names: Sequence[str], where: tuple[str, ...]) -> Iterator[Problem]:
    """Problems of the list of transforms at `where` in the YAML."""
    if any(_may_come_from_plugin(loaded, TRANSFORMS, name) for name in names):
        names = [
            name for name in names if name not in TRANSFORMS and not _may_come_from_plugin(loaded, TRANSFORMS, name)
        ]
    for fault in faults(names):
        yield Problem.of(fault, loaded.where(*where))


def template_problems(loaded: Loaded[Any], template: str | None, where: tuple[str, ...]) -> Iterator[Problem]:
    """Problems of a chat template that is given by name or path."""
    if template is None or Path(template).is_file() or _may_come_from_plugin(loaded, TEMPLATES, template):
        return
    if template.endswith(".jinja"):
        yield from missing_files(loaded, [(f"'{'.'.join(where)}'", template, where)])
        return
    try:
        TEMPLATES.get(template)
    except ConfigError as error:
        yield Problem.of(error, loaded.where(*where))


def _may_come_from_plugin(loaded: Loaded[Any], registry: Registry[Any], name: str) -> bool:
    """Whether an unknown name may come from a plugin that could not be loaded."""
    return "plugins" in loaded.invalid and name not in registry and nearest(name, registry) is None


def starts_from_new_weights(config: TrainConfig) -> bool:
    """Whether a run starts from new weights, as far as its folder shows."""
    if config.start.train_from != AUTO or not config.has_new_model:
        return config.has_new_model
    prefix = Path(config.run.save_model)
    return not any(prefix.parent.glob(f"{escape(prefix.name)}_step_*/{CONFIG_FILE}"))


def _option_problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    """Problems of options that require other options, or the base model of an adapter."""
    config: TrainConfig = loaded.job
    stored = _starting_checkpoint(config)
    beside_base = config.lora.is_on or (config.expansion.is_on and config.expansion.expand_type == "concat")
    unread = stored is None and not starts_from_new_weights(config)  # it may be an adapter
    adapters = beside_base or unread or (stored is not None and stored[1].addition is not None)
    objective = config.corpora.objective
    for rule in (
        partial(check_validation, config),
        partial(check_in_backward, config, config.devices.world_size),
        partial(check_reference, objective, config.preference, adapters=adapters),
    ):
        try:
            rule()
        except OnmtLlmError as error:
            if not any(name in error.message for name in loaded.invalid):
                yield Problem.of(error, loaded.place_of(error.message))


def _starting_checkpoint(config: TrainConfig) -> tuple[Path, CheckpointConfig] | None:
    """Path and configuration of the checkpoint that the run starts from.

    None if there is none, or if it cannot be read (which `missing_models` reports).
    """
    named = config.start.init_from if config.start.train_from == AUTO else config.start.train_from
    if named is None:
        return None
    try:
        path = resolve_path(named)
        return path, read_config(path)
    except OnmtLlmError:
        return None


def _vocabulary_problems(loaded: Loaded[Any], *, required: bool) -> Iterator[Problem]:
    """Vocabulary files that are missing; with `required`, also vocabularies of a new model that no option names."""
    config: TrainConfig = loaded.job
    vocabulary = config.vocabulary
    features = [f"{vocabulary.src_vocab}_feat{number}" for number in range(config.corpora.n_src_feats)]
    files = [*option_files(loaded, "vocabulary", ("src_vocab", "tgt_vocab"))]
    if vocabulary.src_vocab:
        files += [("'src_vocab'", path, ("src_vocab",)) for path in features]
    yield from missing_files(loaded, files)
    if not required or _VOCABULARY_OPTIONS & loaded.invalid:
        return
    try:
        lm = config.decide_task().task == "lm"
    except ValueError:
        return  # the schema has reported it
    try:
        src_spec, tgt_spec = tokenizer_specs(config.corpora)
    except OnmtLlmError as error:
        if not any(faults(config.corpora.model_transforms)):
            yield Problem.of(error, loaded.place_of(error.message))
        return
    src, tgt = vocabulary.src_vocab, vocabulary.tgt_vocab
    needs = [("tgt_vocab", tgt, tgt_spec), ("src_vocab", src, src_spec or tgt_spec)]
    if lm:
        needs = [("src_vocab", src or tgt, src_spec)]
    elif vocabulary.share_vocab:
        needs = [("src_vocab", src or tgt, tgt_spec or src_spec)]
    if config.corpora.n_src_feats and src is None:
        needs.append(("src_vocab", None, None))
    for option, path, spec in needs:
        if path is None and not brings_vocabulary(spec):
            yield Problem.of(no_vocabulary(option))


def _architecture_problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    """Architecture options that differ from the checkpoint that the run starts from.

    The configuration of a checkpoint with expanded blocks differs from its options, so it is not compared here.
    """
    config: TrainConfig = loaded.job
    found = _starting_checkpoint(config)
    if found is None:
        return
    path, stored = found
    try:
        check_task(config.start.model_task, stored.model, path)
    except ConfigError as error:
        yield Problem.of(error, loaded.place_of(error.message))
    forced = config.start.override_opts or "override_opts" in loaded.invalid
    if not forced and stored.expansion is None and not config.expansion.is_on:
        for problem in conflicts(stored.model, config.architecture, path):
            yield replace(problem, where=loaded.place_of(problem.sentence))


def inference_problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    """Problems of the models, transforms and template of an inference configuration."""
    yield from missing_models(loaded, "inference", ("model",), releases=True)
    yield from transform_problems(loaded, loaded.job.inference.transforms, ("transforms",))
    template = loaded.job.inference.template
    yield from template_problems(loaded, None if template == "auto" else template, ("template",))
