"""Every family of encoder-decoders against `transformers`: logits, cached decoding, the way back, CTranslate2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.test_converters_hf import save_tokenizer

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface.families import FAMILIES
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.nn.kv_cache import KVCache

transformers = pytest.importorskip("transformers")

GENERATOR = torch.Generator().manual_seed(3)
SRC_BS = torch.randint(4, 300, (2, 45), generator=GENERATOR)
TGT_BT = torch.randint(4, 300, (2, 43), generator=GENERATOR)
SRC_MASK_BS = torch.arange(45) < torch.tensor([[45], [9]])
BART = {
    **{"d_model": 32, "vocab_size": 300, "max_position_embeddings": 64, "encoder_layers": 3, "decoder_layers": 2},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    **{"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2},
}
MARIAN = {"pad_token_id": 299, "decoder_start_token_id": 299, "eos_token_id": 0, "scale_embedding": True}
TWO = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 300}
UNREAD = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
"""Tables whose first two rows nothing reads; they come back as zeros."""

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "m2m_100": ("m2m_100", BART),
    "m2m_100 gelu, not scaled": ("m2m_100", {**BART, "activation_function": "gelu", "scale_embedding": False}),
    "marian": ("marian", {**BART, **MARIAN, "activation_function": "swish"}),
    "marian two vocabularies": ("marian", {**BART, **MARIAN, **TWO, "decoder_vocab_size": 310}),
    "marian two embeddings, untied": ("marian", {**BART, **MARIAN, **TWO, "tie_word_embeddings": False}),
    "mbart": ("mbart", {**BART, "scale_embedding": True}),
    "mbart relu": ("mbart", {**BART, "activation_function": "relu"}),
    "bart": ("bart", BART),
    "pegasus": ("pegasus", {**BART, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}),
}


def test_every_family_is_here() -> None:
    assert {kind for kind, _ in MODELS.values()} == {one.model_type for one in FAMILIES if one.task == "seq2seq"}


def save_model(directory: Path, kind: str, settings: dict[str, Any]) -> Any:
    """A model of transformers with random weights, norms and biases included, saved to `directory`."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **settings)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval().float()
    with torch.no_grad():
        for parameter in [one for one in model.parameters() if one.requires_grad]:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return model


def logits_of(theirs: Any) -> torch.Tensor:
    return theirs(input_ids=SRC_BS, attention_mask=SRC_MASK_BS, decoder_input_ids=TGT_BT).logits


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_family(tmp_path: Path, name: str) -> None:
    kind, settings = MODELS[name]
    theirs = save_model(tmp_path / "hf", kind, settings)
    convert(tmp_path / "hf", tmp_path / "ours")
    expected = logits_of(theirs)
    assert expected.std() > 0.1 and expected.isfinite().all()

    model = load_model(tmp_path / "ours")
    assert (model(SRC_BS, TGT_BT, src_mask_BS=SRC_MASK_BS) - expected).abs().max() <= 1e-5
    cache = KVCache(model.config.decoder_layers)
    memory_BSD = model.encode(SRC_BS, SRC_MASK_BS)
    pieces = [
        model.logits(model.decode(TGT_BT[:, start:end], memory_BSD, SRC_MASK_BS, cache=cache))
        for start, end in [(0, 5), *((t, t + 1) for t in range(5, TGT_BT.shape[1]))]
    ]
    assert (torch.cat(pieces, dim=1) - expected).abs().max() <= 1e-5

    export_hf(tmp_path / "ours", tmp_path / "back")
    back = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back").eval()
    there, here = theirs.state_dict(), back.state_dict()
    assert there.keys() == here.keys() and back.config.model_type == kind
    for key, tensor in there.items():
        unread = 2 if key in UNREAD else 0
        assert torch.equal(tensor[unread:], here[key][unread:]), key
    assert torch.equal(logits_of(back), expected)
    again = convert(tmp_path / "back", tmp_path / "again")
    assert Checkpoint.open(again).config.model == Checkpoint.open(tmp_path / "ours").config.model
