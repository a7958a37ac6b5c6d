"""Write CTranslate2 releases of language models and encoder-decoder models, verified against the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs import model_spec

from onmt_llm.atomic import AtomicDirectory
from onmt_llm.checkpoint.export_guard import obstacles
from onmt_llm.checkpoint.files.manifest import MANIFEST_FILE, manifest_text
from onmt_llm.checkpoint.load import check_fits, expected_shapes
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import CONFIG_FILE, config_text
from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.releasing.ct2_spec import EXPRESSIBLE, build_spec, oversized, spec_variables
from onmt_llm.releasing.ct2_weights import QuantizedTensors, fill
from onmt_llm.releasing.formats import FORMATS, ReleaseReport, Verify
from onmt_llm.releasing.verify import verify_release
from onmt_llm.text.codec import Codec
from onmt_llm.text.vocab import Vocab


@FORMATS.register("ctranslate2")
def release_ctranslate2(
    checkpoint: Checkpoint, output: Path, *, quantization: str | None, verify: Verify, text: str | None, force: bool
) -> ReleaseReport:
    """Write a directory for `ctranslate2.Generator` or `Translator`, and for `open_engine`; see `release`."""
    quantization = quantization or "float32"
    if quantization not in model_spec.ACCEPTED_MODEL_TYPES:
        known = ", ".join(model_spec.ACCEPTED_MODEL_TYPES)
        raise ConfigError(f"quantization must be one of {known}, but is '{quantization}'.")
    codec = checkpoint.codec()
    problems = obstacles(checkpoint.config.model, EXPRESSIBLE)
    too_large = oversized(checkpoint.config.model, quantization)
    problems += [too_large] if too_large else []
    if not checkpoint.config.model.is_decoder_only and codec.vocab.bos_id is None:
        problems.append("no token starts its targets: specials.bos is not in the vocabulary")
    if problems:
        raise UnsupportedError(
            f"The format ctranslate2 cannot hold {checkpoint.path}: {'; '.join(problems)}.",
            hint="use --format safetensors",
        )
    with AtomicDirectory(output, overwrite=force) as release:
        with release.translated_errors():
            write_model(checkpoint, codec, release.directory, quantization=quantization)
            release.add_text(CONFIG_FILE, config_text(checkpoint.config))
            codec.copy_files(release.directory)
        report = verify_release(checkpoint.path, release.directory, quantization=quantization, verify=verify, text=text)
        with release.translated_errors():
            release.add_text(MANIFEST_FILE, manifest_text(release.directory))
        return report


def write_model(checkpoint: Checkpoint, codec: Codec, directory: Path, *, quantization: str) -> None:
    """Write model.bin, config.json and the vocabularies.

    Raises:
        CheckpointError: The checkpoint's tensors do not match its configuration.
    """
    config = checkpoint.config.model
    check_fits(checkpoint, expected_shapes(config))
    tensors = QuantizedTensors(checkpoint, quantization)
    spec = build_spec(config)
    for variable in spec_variables(config):
        fill(spec, variable, tensors)
    _set_special_tokens(spec.config, codec)
    spec.config.layer_norm_epsilon = config.norm_eps
    if config.is_decoder_only:
        spec.register_vocabulary(_tokens(codec.vocab, config.vocab_size))
    else:
        spec.register_target_vocabulary(_tokens(codec.vocab, config.vocab_size))
        spec.register_source_vocabulary(_tokens(codec.src_vocab, config.encoder_vocab_size))
        for vocab, feature in zip(codec.feature_vocabs, config.src_features, strict=True):
            spec.register_source_vocabulary(_tokens(vocab, feature.vocab_size))
        spec.config.decoder_start_token = codec.vocab.specials.bos
        layer, heads = checkpoint.config.alignment_layer, checkpoint.config.alignment_heads
        spec.decoder.alignment_layer = np.int16(layer % config.decoder_layers)
        spec.decoder.alignment_heads = np.int16(heads or config.heads)
    spec.validate()
    spec.optimize()  # without a quantisation, this only finds shared variables: tied embeddings
    spec.save(str(directory))


def _tokens(vocab: Vocab, size: int) -> list[str]:
    """The tokens, with placeholder names for embedding rows without a token."""
    tokens = list(vocab)
    return tokens + [f"｟unused {row}｠" for row in range(len(tokens), size)]


def _set_special_tokens(target: Any, codec: Codec) -> None:
    """Set unk, bos and eos. CTranslate2 requires all three, so another token replaces a missing one."""
    specials, tokens = codec.vocab.specials, [token for token in codec.stop_tokens if token in codec.vocab]
    substitute = next(
        (token for token in (specials.eos, *tokens, specials.bos) if token in codec.vocab), codec.vocab[0]
    )
    for role in ("unk", "bos", "eos"):
        token = getattr(specials, role)
        setattr(target, f"{role}_token", token if token in codec.vocab else substitute)
