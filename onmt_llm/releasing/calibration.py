"""Calibrate an int8 release: round the weights of all layers by their inputs on a text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onmt_llm.checkpoint.load import Placement, build_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.data.batching.batch import Batch
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.errors import DataError
from onmt_llm.generate.torch.engine import TorchEngine
from onmt_llm.log import logger
from onmt_llm.nn.transformer import Transformer
from onmt_llm.releasing.blockwise import Blockwise, watched
from onmt_llm.releasing.ct2_spec import SpecVariable, spec_variables
from onmt_llm.releasing.gptq import InputStatistics, round_rows
from onmt_llm.releasing.verify import WINDOW, text_windows
from onmt_llm.releasing.verify_translations import translate

MOST_TOKENS = 8192
"""Of a longer text, so many tokens are read, in windows that are spread over it; of corpora, in training's order."""
FEWEST_TOKENS = 1024
_MOST_CHARACTERS = 4 * MOST_TOKENS
"""Of a longer text, an encoder-decoder translates the beginning."""


class Calibration:
    """The rounded weights of a model's layers, in files of a folder.

    A decoder runs block by block. When all texts have passed a block, its matrices are rounded and written, and the
    statistics of their inputs are dropped. An encoder-decoder translates with all of its blocks in memory.

    Args:
        checkpoint: The model to quantise.
        sample: What it is run on: a text, or corpora with one example to a batch.
        folder: Where the files are written.
        skipped: Targets of matrices that are not quantised.

    Attributes:
        tokens: Number of tokens that were read.

    Raises:
        DataError: The text is too short.
    """

    def __init__(
        self, checkpoint: Checkpoint, sample: str | PipelineSpec, folder: Path, *, skipped: Collection[str] = ()
    ) -> None:
        self._checkpoint, self._folder = checkpoint, folder
        self._variables = {
            variable.layers[0]: variable
            for variable in spec_variables(checkpoint.config.model)
            if variable.kind == "matrix" and variable.target not in skipped and not variable.is_embedding
        }
        self._inputs: dict[str, InputStatistics] = {}
        self._files: dict[tuple[str, ...], Path] = {}
        self._block = ""
        if checkpoint.config.model.is_decoder_only:
            self.tokens = self._continue(_windows(checkpoint, sample))
        else:
            model = build_model(checkpoint, Placement(torch.float32)).eval()
            self.tokens = self._translate(model, sample)
        self._round()
        logger.info("Calibrated on %d tokens.", self.tokens)

    def _continue(self, windows: Sequence[Sequence[int]]) -> int:
        """Run a language model, with one block in memory at a time."""
        tokens = _checked(sum(map(len, windows)))
        for hidden_TD in Blockwise(self._checkpoint).run(windows, watch=self._watch_blocks):
            self._watch("lm_head", hidden_TD)
        return tokens

    def _translate(self, model: Transformer, sample: str | PipelineSpec) -> int:
        """Run an encoder-decoder on pairs of the corpora, or on a text and its own translation of it."""
        if isinstance(sample, PipelineSpec):
            batches = list(_examples(sample))
            tokens = _checked(sum(map(_size, batches)))
            with watched(model, "", self._watch), torch.inference_mode():
                for batch in batches:
                    assert batch.src_BS is not None
                    model(batch.src_BS, batch.tgt_BT, features_BSF=batch.features_BSF)
            return tokens
        codec = self._checkpoint.codec()
        engine = TorchEngine(model, codec.for_languages(*codec.config.languages.example))
        translations = translate(engine, sample[:_MOST_CHARACTERS])
        pairs = list(zip(translations.sources, translations.targets, strict=True))
        tokens = _checked(sum(len(source) + len(target) for source, target in pairs))
        with watched(model, "", self._watch):
            for source, target in pairs:  # one by one, without padding
                engine.score([target], sources=[source])
        return tokens

    def rounded(self, variable: SpecVariable) -> tuple[Tensor, Tensor] | None:
        """Values (int8) and scales of a matrix; None if it does not belong to a layer, such as an embedding."""
        file = self._files.get(variable.sources)
        if file is None:
            return None
        tensors = load_file(file)
        return tensors["values"], tensors["scales"]

    def _watch_blocks(self, layer: str, x_TC: Tensor) -> None:
        """See a layer's input; at the first layer of a block, the one before is complete."""
        block = ".".join(layer.split(".")[:3])
        if block != self._block:
            self._round()
            self._block = block
        self._watch(layer, x_TC)

    def _watch(self, layer: str, x_TC: Tensor) -> None:
        """See a layer's input. A matrix that several layers form is watched at the first of them."""
        if layer in self._variables:
            self._inputs.setdefault(layer, InputStatistics()).add(x_TC)

    def _round(self) -> None:
        """Round the matrices whose inputs are known."""
        while self._inputs:
            layer, statistics = self._inputs.popitem()
            variable = self._variables[layer]
            factor_CC = statistics.factor()
            parts = [
                round_rows(rows.float().mul_(variable.factor), factor_CC)
                for source in variable.sources
                for rows in self._checkpoint.blocks(source)
            ]
            values_RC, scales_R = (torch.cat(one) for one in zip(*parts, strict=True))
            file = self._folder / f"{layer}.safetensors"
            save_file({"values": values_RC, "scales": scales_R}, file)
            self._files[variable.sources] = file


def _checked(tokens: int) -> int:
    if tokens < FEWEST_TOKENS:
        raise DataError(
            f"What a release is calibrated on must have at least {FEWEST_TOKENS:,} tokens, but has {tokens:,}.",
            hint="give more text of the kind that the model will read",
        )
    return tokens


def _windows(checkpoint: Checkpoint, sample: str | PipelineSpec) -> list[list[int]]:
    """Token ids that a language model is run on, in windows."""
    if isinstance(sample, str):
        codec = checkpoint.codec()
        return [codec.vocab.ids(window) for window in _spread(text_windows(checkpoint, codec, sample))]
    size = min(WINDOW, checkpoint.config.model.max_position)
    return [part.tolist() for batch in _examples(sample) for part in batch.tgt_BT[0].split(size)]


def _examples(spec: PipelineSpec) -> Iterator[Batch]:
    """Examples of corpora in the order of training, until they have `MOST_TOKENS` tokens."""
    tokens = 0
    for batch in Pipeline(spec):
        yield batch
        tokens += _size(batch)
        if tokens >= MOST_TOKENS:
            return


def _size(batch: Batch) -> int:
    """Tokens of both sides."""
    return batch.tgt_BT.numel() + (0 if batch.src_BS is None else batch.src_BS.numel())


def _spread(windows: list[list[str]]) -> list[list[str]]:
    """Windows at equal distances that together have at most about `MOST_TOKENS` tokens."""
    count = max(1, MOST_TOKENS // max(map(len, windows)))
    step = max(1.0, len(windows) / count)
    return [windows[int(number * step)] for number in range(min(count, len(windows)))]
