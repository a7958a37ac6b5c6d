"""What a training run starts from: new weights or a checkpoint."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from onmt_llm.config.section import Section
from onmt_llm.config.task import Task

AUTO = "auto"
"""Value of `train_from`: resume from the newest checkpoint of this run."""


class StartConfig(Section):
    """The checkpoint that the run starts from, or how new weights are initialised."""

    train_from: str | None = None
    """Checkpoint to start from: resume the run if it holds a training state, else fine-tune it. `auto` = the newest
    checkpoint of this run (`save_model`), or `init_from` if there is none yet."""
    init_from: str | None = None
    """`train_from: auto`: checkpoint that a new run starts from, at step 0; null = new weights."""
    model_task: Task | None = None
    """Language model or translation; null = the task of `train_from`. Without `train_from`: translation if
    `encoder_layers` is above 0, a corpus has a `path_tgt`, or `tgt_vocab` is set; else a language model."""
    model_defaults: Literal["onmt_llm", "opennmt"] = "onmt_llm"
    """Defaults for the architecture of a new model. `opennmt` (implied by `encoder_type` and `decoder_type`): 2 layers,
    and a bias on the output layer of language models too."""
    update_vocab: bool = False
    """Fine-tune `train_from` with the vocabulary of `src_vocab` and `tgt_vocab`; known tokens keep their embeddings."""
    override_opts: bool = False
    """Architecture options that are set replace those of `train_from`; options that are not set never do."""
    reset_optim: Literal["none", "all", "states", "keep_states"] = "none"
    """When resuming, reset: nothing, the optimiser state and the step (`all`), the optimiser state only (`states`), or
    the learning-rate settings only (`keep_states`)."""
    param_init: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Initialise a new model's weights uniformly in [-param_init, param_init]; 0 = the default of `nn.init`."""
    param_init_glorot: bool = False
    """Initialise a new model's matrices with Xavier uniform (Glorot and Bengio 2010)."""
