"""Inputs of a run: batches, training objective and validation prompts."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from onmt_llm.checkpoint.load import load_model
from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.learning import OptimConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.data.eval_prompts import read_prompts
from onmt_llm.data.inspection.samples import write_samples
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.data.spec import PipelineSpec, split_corpora
from onmt_llm.text.codec import Codec
from onmt_llm.training.checks import check_validation
from onmt_llm.training.losses.balance import open_balance
from onmt_llm.training.losses.objective import Objective, open_alignment
from onmt_llm.training.losses.preference import LoadModel, open_preference_loss
from onmt_llm.training.losses.terms import open_terms
from onmt_llm.training.process.dist import World
from onmt_llm.training.setup.layers import LayerPlan
from onmt_llm.training.setup.start import Start
from onmt_llm.training.validation.generation import GenerationValidator, dump_folder


def open_pipelines(
    config: TrainConfig, codec: Codec, *, seed: int, world: World
) -> tuple[Pipeline, dict[str, Pipeline]]:
    """Batches for training, and those of each validation corpus."""
    train, valid = split_corpora(config.corpora.data)
    return open_pipeline(config, codec, train, training=True, seed=seed, world=world), {
        name: open_pipeline(config, codec, {name: corpus}, training=False, seed=seed, world=world)
        for name, corpus in valid.items()
    }


def open_pipeline(
    config: TrainConfig,
    codec: Codec,
    corpora: Mapping[str, CorpusConfig],
    *,
    training: bool,
    seed: int,
    world: World,
    audited: bool = False,
) -> Pipeline:
    """Batches of some corpora; see `Pipeline`."""
    index = config.corpora.index_cache or f"{config.run.save_model}_index"
    spec = PipelineSpec(
        corpora,
        config.corpora.model_copy(update={"index_cache": index}),
        codec,
        seed=seed if config.batching.data_seed is None else config.batching.data_seed,
        training=training,
        batching=config.batching,
    )
    pin_memory = world.device.type == "cuda"
    return Pipeline(spec, rank=world.data_rank, world_size=world.data_size, pin_memory=pin_memory, audited=audited)


def open_objective(
    config: TrainConfig,
    optim: OptimConfig,
    start: Start,
    layers: LayerPlan,
    device: torch.device,
    *,
    load_reference: LoadModel = load_model,
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
            load=load_reference,
        ),
        label_smoothing=optim.label_smoothing,
        terms=open_terms(config.loss, start.codec.vocab, device, packed=config.batching.packing != "off"),
        alignment=open_alignment(config.loss, start.model, train_corpora),
        balance=open_balance(config.loss, start.model),
        divergence=config.expansion.expand_divergence,
        chunk_tokens=config.performance.loss_chunk_tokens,
    )


def open_generation_validator(config: TrainConfig, codec: Codec) -> GenerationValidator | None:
    """The validation corpora as prompts with reference answers; None if no metric is asked for."""
    scorers = check_validation(config)
    if not scorers:
        return None
    _, corpora = split_corpora(config.corpora.data)
    prompts, skipped = read_prompts(PipelineSpec(corpora, config.corpora, codec, training=False))
    return GenerationValidator(
        prompts,
        skipped=skipped,
        scorers=scorers,
        codec=codec,
        settings=config.validation,
        batching=config.batching,
        folder=dump_folder(config.validation, config.run.save_model),
    )


def sample(config: TrainConfig, codec: Codec) -> None:
    """Write samples of the transformed corpora instead of training."""
    data = config.corpora
    folder = data.save_data or f"{config.run.save_model}_data"
    write_samples(PipelineSpec(data.data, data, codec), folder, n_sample=data.n_sample)
