"""The codec of the model that a run trains, opened without its weights."""

from __future__ import annotations

from onmt_llm.checkpoint.files.manifest import open_directory
from onmt_llm.checkpoint.paths import resolve_path
from onmt_llm.config.data_tool import DataToolConfig
from onmt_llm.config.model import check_task
from onmt_llm.data.run_codec import checkpoint_codec, new_codec, updated_codec
from onmt_llm.text.codec import Codec
from onmt_llm.training.checkpointing.train_from import resolve_train_from


def open_run_codec(config: DataToolConfig) -> Codec:
    """The codec of a new model, or of the checkpoint in `train_from` with the vocabulary that the run gives it."""
    run = resolve_train_from(config)
    if run.start.train_from is None:
        return new_codec(run).codec
    path = resolve_path(run.start.train_from)
    open_directory(path)  # refuses a checkpoint whose configuration is damaged
    codec = Codec.open(path)
    check_task(run.start.model_task, codec.config.model, path)
    text = checkpoint_codec(run, codec, codec.config, path=path)
    return updated_codec(run, text, path).codec if run.start.update_vocab else text.codec
