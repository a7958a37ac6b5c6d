"""Run a checkpoint's decoder with one of its blocks in memory at a time.

All texts go through a block before the next one is loaded, so a model is read once, whatever the number of texts. The
embedding and the output layer, usually the largest matrices, are read in blocks of rows.

Shape letters: T tokens of a text, D width, V vocabulary, N tokens of all texts, C input of a linear layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from onmt_llm.checkpoint.files.blocks import with_rows
from onmt_llm.checkpoint.load import Placement, check_layers, load_weights
from onmt_llm.checkpoint.progress import TensorProgress
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import UnsupportedError
from onmt_llm.nn.device import freed_at_once
from onmt_llm.nn.layers.block import BlockContext
from onmt_llm.nn.layers.position_wise import TokenEmbedding
from onmt_llm.nn.layers.stack import Stack
from onmt_llm.nn.masks import decoder_masks
from onmt_llm.nn.positions import Positions
from onmt_llm.nn.transformer import Transformer

Watch = Callable[[str, Tensor], None]
Part = TypeVar("Part", bound=nn.Module)

EMBEDDING = "decoder.embed_tokens.weight"


class Blockwise:
    """A decoder-only model that is never in memory as a whole; computes in float32.

    Args:
        checkpoint: Holds a whole model.

    Raises:
        CheckpointError: The checkpoint's tensors do not fit its configuration.
        UnsupportedError: The model has an encoder.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        if not checkpoint.config.model.is_decoder_only:
            raise UnsupportedError(
                f"Only decoder-only models run block by block, but {checkpoint.path} has an encoder."
            )
        check_layers(checkpoint)
        with torch.device("meta"):
            self._model = Transformer(checkpoint.config.model).eval()
        checkpoint.check_fits({name: tuple(p.shape) for name, p in self._model.named_parameters()})
        self._checkpoint = checkpoint

    @torch.no_grad()
    def run(self, windows: Sequence[Sequence[int]], *, watch: Watch | None = None) -> list[Tensor]:
        """Hidden states (T, D) of each text after the final norm.

        Args:
            windows: Token ids of independent texts.
            watch: Called before a linear layer of a block is applied to a text, with the layer's path and its input
                (T, C). It sees all texts of one block before those of the next.
        """
        edges = self._loaded(self._edges(), "decoder")
        states = self._embed(edges, windows)
        contexts = self._contexts(edges, states)
        paths = [f"decoder.layers.{number}" for number in range(self._checkpoint.config.model.decoder_layers)]
        sizes = {path: self._sizes(path) for path in paths}
        with TensorProgress("reference", [size for one in sizes.values() for size in one]) as progress:
            for path in paths:
                block = self._loaded(self._model.get_submodule(path), path)
                with watched(block, f"{path}.", watch):
                    for place, state in enumerate(states):
                        states[place] = block(state, contexts[state.shape[1]])
                del block  # before the next one is loaded
                progress.add(*sizes[path])
        return [(state if edges.norm is None else edges.norm(state))[0] for state in states]

    @torch.no_grad()
    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Logits (T, V) of the next tokens, from the output of `run`."""
        checkpoint, config = self._checkpoint, self._checkpoint.config.model
        bias = checkpoint.tensor("lm_head.bias").to(torch.float32) if config.lm_head_bias else None
        logits_TV = hidden_TD.new_empty(len(hidden_TD), config.vocab_size)
        name = EMBEDDING if config.tie_embeddings else "lm_head.weight"
        for rows, block in with_rows(checkpoint.blocks(name)):
            self._model.lm_head = _linear(block.to(torch.float32), None if bias is None else bias[rows])
            logits_TV[:, rows] = self._model.logits(hidden_TD)
        return logits_TV

    def _sizes(self, path: str) -> list[int]:
        """Bytes of the tensors of a part of the model."""
        names = self._model.get_submodule(path).named_parameters(prefix=path)
        return [self._checkpoint.nbytes(name) for name, _ in names]

    def _loaded(self, part: Part, path: str) -> Part:
        """A copy of a part of the model, with its weights."""
        part = copy.deepcopy(part)
        with freed_at_once():
            load_weights(part, lambda name: self._read(f"{path}.{name}"), Placement(torch.float32))
        return part

    def _read(self, name: str) -> Tensor:
        """A tensor in the type that is computed in; it is never in memory in the stored type too."""
        tensor = torch.empty(self._checkpoint.shape(name), dtype=torch.float32)
        for rows, block in with_rows(self._checkpoint.blocks(name)):
            tensor[rows] = block
        return tensor

    def _edges(self) -> Stack:
        """The decoder without its token embedding and blocks."""
        stack = copy.deepcopy(self._model.decoder)
        assert stack is not None
        stack.layers, stack.embed_tokens = nn.ModuleList(), None
        return stack

    def _embed(self, edges: Stack, windows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Input (1, T, D) of the first block, with only the rows of the embedding that the texts use."""
        used = sorted({token for window in windows for token in window})
        row_of = {token: row for row, token in enumerate(used)}
        embedding = TokenEmbedding(len(used), edges.config.hidden_size, device="meta")
        weight = torch.cat(list(self._rows(EMBEDDING, torch.tensor(used)))).to(torch.float32)
        embedding.weight = nn.Parameter(weight, requires_grad=False)
        rows = [torch.tensor([[row_of[token] for token in window]]) for window in windows]
        return [edges.embed(row_1T, embedding, Positions(0, row_1T.shape[1])) for row_1T in rows]

    def _rows(self, name: str, numbers: Tensor) -> Iterator[Tensor]:
        """Rows of a matrix by their ascending numbers."""
        for rows, block in with_rows(self._checkpoint.blocks(name)):
            yield block[numbers[(numbers >= rows.start) & (numbers < rows.stop)] - rows.start]

    def _contexts(self, edges: Stack, states: Sequence[Tensor]) -> dict[int, BlockContext]:
        """What the blocks need to know of texts, by their lengths."""
        contexts = {}
        for length, state in {state.shape[1]: state for state in states}.items():
            positions = Positions(0, length)
            masks = decoder_masks(edges.config, positions, state.device)
            contexts[length] = edges.context(state, positions, masks)
        return contexts


@contextmanager
def watched(part: nn.Module, prefix: str, watch: Watch | None) -> Iterator[None]:
    """In this context, `watch` sees the inputs of the linear layers of a part of a model; `prefix` precedes their
    paths in it."""
    layers = [(name, layer) for name, layer in part.named_modules() if isinstance(layer, nn.Linear)]
    handles = [] if watch is None else [_add_watch(layer, f"{prefix}{name}", watch) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_watch(layer: nn.Linear, path: str, watch: Watch) -> RemovableHandle:
    def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        watch(path, inputs[0].flatten(0, -2))

    return layer.register_forward_pre_hook(see)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with this weight (out, in)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer
