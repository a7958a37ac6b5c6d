"""What a checkpoint of a run contains besides its training state: tensors, configuration, vocabulary and tokeniser."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from onmt_llm.checkpoint.store import CheckpointWriter
from onmt_llm.config.checkpoint import AdapterSpec, CheckpointConfig, ExpansionSpec
from onmt_llm.nn.block_expansion import twin_state
from onmt_llm.nn.lora.model import lora_state
from onmt_llm.nn.transformer import Transformer
from onmt_llm.text.codec import FEATURE_VOCAB_FILE, SRC_VOCAB_FILE, VOCAB_FILE
from onmt_llm.training.components import TrainingComponents
from onmt_llm.training.setup.run_setup import RunSetup
from onmt_llm.training.setup.start import Start


def addition(setup: RunSetup) -> AdapterSpec | ExpansionSpec | None:
    """Settings of the adapter or of the twins, with the identity of their base; None = the whole model is saved."""
    spec, base = setup.layers.beside_base, setup.start.weights
    if spec is None:
        return None
    assert base is not None
    return spec.model_copy(update={"base": str(base.path.resolve()), "base_fingerprint": base.fingerprint})


def saved_tensors(setup: RunSetup, model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the model, adapter or twins, as they are in memory."""
    spec = setup.layers.beside_base
    if spec is not None:
        state = lora_state if isinstance(spec, AdapterSpec) else twin_state
        yield from state(model).items()
    else:
        for name, parameter in model.named_parameters():
            yield name, parameter.detach()


def saved_config(setup: RunSetup, components: TrainingComponents) -> CheckpointConfig:
    """The `config.yaml` of the run's checkpoints."""
    config, guide = setup.start.config, components.objective.alignment
    if guide is not None:
        update = {
            "alignment_layer": guide.layer,
            "alignment_heads": guide.heads,
            "full_context_alignment": guide.full_context,
        }
        config = config.model_copy(update=update)
    spec = addition(setup)
    if spec is None:
        # Trained weights are stored in their own type, so that a resumed run is exact.
        dtype = "bf16" if components.performance.pure_bf16 else "fp32"
        return config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})
    return config.model_copy(update={"adapter" if isinstance(spec, AdapterSpec) else "expansion": spec})


def write_text_side(writer: CheckpointWriter, start: Start) -> None:
    """Write vocabularies, tokeniser and template."""
    codec = start.codec
    features = {FEATURE_VOCAB_FILE.format(i=i): vocab for i, vocab in enumerate(codec.feature_vocabs)}
    written = {VOCAB_FILE, SRC_VOCAB_FILE, *features}
    for name, content in start.text.files.items():
        if name not in written:
            (writer.directory / name).write_bytes(content)
    codec.vocab.write(writer.directory / VOCAB_FILE)
    if not codec.shares_vocab:
        codec.src_vocab.write(writer.directory / SRC_VOCAB_FILE)
    for name, vocab in features.items():
        vocab.write(writer.directory / name)
