"""What a training run starts from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from onmt_llm.config.section import Section
from onmt_llm.config.task import Task

AUTO = "auto"
"""Value of `train_from`: the newest checkpoint of this run."""


class StartConfig(Section):
    """What a run starts from: new weights or a checkpoint."""

    train_from: str | None = None
    """Checkpoint to begin with; one that holds a training state is resumed, any other is fine-tuned. `auto` = the
    newest of this run (`save_model`), or `init_from` where there is none yet."""
    init_from: str | None = None
    """`train_from: auto`: checkpoint that the run begins with, at step 0; null = new weights."""
    model_task: Task | None = None
    """Language model or translation; null = what `train_from` is. Without that: translation where `encoder_layers` is
    above 0, a corpus has a `path_tgt`, or there is a `tgt_vocab`; else a language model."""
    model_defaults: Literal["onmt_llm", "opennmt"] = "onmt_llm"
    """Whose defaults the architecture of a new model has: with `opennmt`, which `encoder_type` and `decoder_type` stand
    for, 2 layers and a bias on the output layer of a language model too."""
    update_vocab: bool = False
    """Fine-tune `train_from` with the vocabulary of `src_vocab` and `tgt_vocab`; known tokens keep their rows."""
    override_opts: bool = False
    """Architecture options written in the YAML replace those of `train_from` (never the ones left out)."""
    reset_optim: Literal["none", "all", "states", "keep_states"] = "none"
    """When resuming: forget optimiser and step (`all`), the optimiser's state, or the learning-rate settings."""
    param_init: Annotated[float, Field(ge=0, le=100)] = 0.0
    """A new model's weights are uniform in +-this; 0 = the default initialisation of `nn.init`."""
    param_init_glorot: bool = False
    """A new model's matrices are Xavier-uniform (Glorot and Bengio 2010)."""
