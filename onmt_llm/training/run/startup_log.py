"""What a run logs before its first update: model, batch size, kernels, and where files are read and written."""

from __future__ import annotations

from onmt_llm.config.learning import REFERENCE_FREE
from onmt_llm.config.train import TrainConfig
from onmt_llm.log import logger
from onmt_llm.nn.kernels import attention_kernel
from onmt_llm.nn.lora.model import lora_modules
from onmt_llm.nn.quantized import is_quantized
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.components import TrainingComponents
from onmt_llm.training.metrics.build import metrics_path
from onmt_llm.training.run_folder import checkpoints
from onmt_llm.training.setup.layers import LayerPlan
from onmt_llm.training.setup.model import count_parameters
from onmt_llm.training.setup.run_setup import RunSetup
from onmt_llm.training.setup.start import Start


def log_start(setup: RunSetup, components: TrainingComponents, *, step: int) -> None:
    """Log what the run is about to do; rank 0 only.

    Args:
        setup: What the run is set up from.
        components: Its model, optimiser and settings.
        step: Updates done so far.
    """
    if not components.world.is_main:
        return
    start = setup.start
    _log_model(setup.layers, components)
    _log_batch(setup.config, components)
    for note in run_notes(setup.config, start):
        logger.info(note)
    if start.adapter is not None and step == 0:
        noun, path = start.adapter.config.noun, start.adapter.path
        logger.info("Continuing the %s %s as a new run.", noun, path)
        if setup.config.corpora.objective not in REFERENCE_FREE and not setup.config.preference.reference_model:
            logger.warning(
                "The reference is the base without the %s that this run starts from; with it: reference_model %s.",
                *(noun, path),
            )
    if step:
        logger.info("Resuming after step %d.", step)
    elif older := checkpoints(setup.config.run.save_model):
        logger.warning(
            "Checkpoints of an earlier run exist (%s ...); this run replaces those of the same step.",
            next(iter(older.values())),
        )


def _log_model(layers: LayerPlan, components: TrainingComponents) -> None:
    model = components.model
    parameters, trainable = count_parameters(model)
    logger.info(
        "Model: %s parameters, %s trainable, on %s in %s.",
        *(f"{parameters:,}", f"{trainable:,}", components.world.device, components.performance.model_dtype),
    )
    if layers.lora is not None or layers.expansion is not None:
        quantised = sum(map(is_quantized, model.modules()))
        kind = f" ({layers.quant_type})" if quantised else ""
        logger.info("%s; %d layers quantised%s.", _trained_parts(layers, model), quantised, kind)


def _log_batch(config: TrainConfig, components: TrainingComponents) -> None:
    batching, run, world = config.batching, config.run, components.world
    unit = "tokens" if batching.batch_type == "tokens" else "examples"
    effective = batching.batch_size * run.accum_count[0] * world.data_size
    logger.info(
        "Batch: %d %s x %d micro-batches x %d processes = up to %d %s per update.",
        *(batching.batch_size, unit, run.accum_count[0], world.data_size, effective, unit),
    )
    if world.device.type == "cuda":
        model = components.model.config
        masked = model.sliding_window is not None or (batching.packing != "off" and batching.isolate_documents)
        dtype = components.precision.autocast or components.precision.weights
        kernel = attention_kernel(model, dtype, dropout=config.regularization.attention_dropout[0], masked=masked)
        logger.info("Attention: torch's kernel for %s.", kernel)


def _trained_parts(layers: LayerPlan, model: Transformer) -> str:
    """What is trained in or beside a frozen model."""
    if layers.lora is not None:
        return f"LoRA rank {layers.lora.rank}, alpha {layers.lora.alpha:g} on {len(lora_modules(model))} layers"
    assert layers.expansion is not None
    share = "" if layers.twins is None else f", lerp {layers.twins.lerp:g}"
    return (
        f"{len(layers.new_blocks)} new blocks ({layers.expansion.type}{share}) at {', '.join(layers.expansion.blocks)}"
    )


def run_notes(config: TrainConfig, start: Start) -> list[str]:
    """What a run is initialised from, and which files it writes."""
    run, log = config.run, config.logging
    source = "new weights" if start.weights is None else str(start.weights.path)
    if start.adapter is not None:
        source += f" with the {start.adapter.config.noun} {start.adapter.path}"
    kept = "none" if run.keep_checkpoint == 0 else f"{run.save_model}_step_N every {run.save_checkpoint_steps} steps"
    if run.keep_checkpoint > 0:
        kept += f", the last {run.keep_checkpoint} kept"
    if config.optimizer.average_decay:
        kept += f"; the averaged weights in {run.save_model}_step_N_ema"
    lines = [f"Initialised from: {source}", f"Checkpoints: {kept}", f"Metrics: {metrics_path(config)}"]
    if log.tensorboard:
        lines.append(f"TensorBoard: {log.tensorboard_log_dir}")
    return lines
