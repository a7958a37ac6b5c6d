"""What a run opens before it begins: its batches, what they are trained for, and what it is judged by."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.section import Section
from onmt_llm.config.train import TrainConfig
from onmt_llm.config.training.optimizer import OptimConfig
from onmt_llm.data.corpus import split_corpora
from onmt_llm.data.eval_prompts import read_prompts
from onmt_llm.data.inspection.samples import write_samples
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.training.checks import check_validation
from onmt_llm.training.losses.lm_prior import open_prior
from onmt_llm.training.losses.objective import Objective, open_alignment
from onmt_llm.training.losses.preference import open_preference_loss
from onmt_llm.training.process.dist import World
from onmt_llm.training.setup.layers import LayerPlan
from onmt_llm.training.setup.start import Start
from onmt_llm.training.validation.generation import GenerationValidator, dump_folder


def open_pipelines(
    config: TrainConfig, options: Mapping[str, Section], start: Start, *, seed: int, world: World
) -> tuple[Pipeline, dict[str, Pipeline]]:
    """Batches for training, and those of each corpus for validation."""
    train, valid = split_corpora(config.corpora.data)
    return open_pipeline(config, options, start, train, training=True, seed=seed, world=world), {
        name: open_pipeline(config, options, start, {name: corpus}, training=False, seed=seed, world=world)
        for name, corpus in valid.items()
    }


def open_pipeline(
    config: TrainConfig,
    options: Mapping[str, Section],
    start: Start,
    corpora: Mapping[str, CorpusConfig],
    *,
    training: bool,
    seed: int,
    world: World,
    audited: bool = False,
) -> Pipeline:
    """Batches of some corpora; see `Pipeline`."""
    index = config.corpora.index_cache or f"{config.run.save_model}_index"
    return Pipeline(
        corpora,
        data=config.corpora.model_copy(update={"index_cache": index}),
        batching=config.batching,
        options=options,
        vocab=start.vocab,
        src_vocab=start.src_vocab,
        tokenizer=start.tokenizer,
        src_tokenizer=start.src_tokenizer,
        template=start.template,
        task=start.task,
        add_bos=start.config.specials.add_bos,
        feature_vocabs=start.feature_vocabs,
        seed=seed if config.batching.data_seed is None else config.batching.data_seed,
        training=training,
        rank=world.rank,
        world_size=world.size,
        pin_memory=world.device.type == "cuda",
        audited=audited,
    )


def open_objective(
    config: TrainConfig, optim: OptimConfig, start: Start, layers: LayerPlan, device: torch.device
) -> Objective:
    """What the batches are trained for."""
    train_corpora, _ = split_corpora(config.corpora.data)
    return Objective(
        preference=open_preference_loss(
            config.corpora.objective,
            config.preference,
            adapters=layers.beside_base is not None,
            model=start.model,
            dtype=config.performance.model_dtype,
            device=device,
            chunk_tokens=config.performance.loss_chunk_tokens,
        ),
        label_smoothing=optim.label_smoothing,
        prior=open_prior(config.loss, start.vocab, device, packed=config.batching.packing != "off"),
        alignment=open_alignment(config.loss, start.model, train_corpora),
        chunk_tokens=config.performance.loss_chunk_tokens,
    )


def open_generation_validator(
    config: TrainConfig, options: Mapping[str, Section], start: Start
) -> GenerationValidator | None:
    """The validation corpora as questions; None where no metric is asked for."""
    _, corpora = split_corpora(config.corpora.data)
    scorers = check_validation(config.validation, corpora)
    if not scorers:
        return None
    prompts, skipped = read_prompts(corpora, data=config.corpora, options=options, model=start.text)
    return GenerationValidator(
        prompts,
        skipped=skipped,
        scorers=scorers,
        codec=start.codec,
        settings=config.validation,
        batching=config.batching,
        folder=dump_folder(config.validation, config.run.save_model),
    )


def sample(config: TrainConfig, options: Mapping[str, Section], start: Start) -> None:
    """Write samples of the transformed corpora instead of training."""
    data = config.corpora
    folder = data.save_data or f"{config.run.save_model}_data"
    write_samples(
        data.data,
        data=data,
        options=options,
        model=start.text,
        directory=folder,
        n_sample=data.n_sample,
        overwrite=data.overwrite,
    )
