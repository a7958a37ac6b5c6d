"""Every family of encoder-decoders against `transformers`: logits, cached decoding, the way back, CTranslate2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.test_converters_hf import change_config, save_tokenizer

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface.families import FAMILIES
from onmt_llm.checkpoint.formats.huggingface.read import family_of
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.formats.peft.read import import_peft
from onmt_llm.checkpoint.formats.peft.write import export_peft
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint, seal
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.generate.open import open_engine
from onmt_llm.nn.inference.fuse import fuse_for_inference
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.releasing import release
from onmt_llm.training.losses.batch_loss import batch_loss

transformers = pytest.importorskip("transformers")

GENERATOR = torch.Generator().manual_seed(3)
SRC_BS = torch.randint(4, 300, (2, 45), generator=GENERATOR)
TGT_BT = torch.randint(4, 300, (2, 43), generator=GENERATOR)
SRC_MASK_BS = torch.arange(45) < torch.tensor([[45], [9]])
BART = {
    **{"d_model": 32, "vocab_size": 300, "max_position_embeddings": 64, "encoder_layers": 3, "decoder_layers": 2},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    **{"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2},
    **{"dropout": 0.0, "attention_dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0},
}
MARIAN = {"pad_token_id": 299, "decoder_start_token_id": 299, "eos_token_id": 0, "scale_embedding": True}
TWO = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 300}
T5 = {
    **{"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 2},
    **{"vocab_size": 300, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
    **{"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0, "dropout_rate": 0.0},
}
GATED = {"feed_forward_proj": "gated-gelu"}
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
    "t5": ("t5", T5),
    "t5 1.1, untied": ("t5", {**T5, **GATED, "tie_word_embeddings": False}),
    "t5 tied, not scaled": ("t5", {**T5, "feed_forward_proj": "gated-silu", "d_kv": 6, "tie_word_embeddings": False}),
    "t5 untied, scaled": ("t5", {**T5, "feed_forward_proj": "gelu", "num_decoder_layers": None}),
    "mt5": ("mt5", {**T5, "feed_forward_proj": "relu"}),
    "mt5 untied": ("mt5", {**T5, **GATED}),
    "umt5": ("umt5", {**T5, **GATED}),
    "umt5 untied": ("umt5", {**T5, "feed_forward_proj": "gelu_new", "num_layers": 1, "num_decoder_layers": 1}),
}


def test_every_family_is_here() -> None:
    assert {kind for kind, _ in MODELS.values()} == {one.model_type for one in FAMILIES if one.task == "seq2seq"}


def save_model(directory: Path, kind: str, settings: dict[str, Any], *, untied: bool = False) -> Any:
    """A model of transformers with random weights, norms and biases included, saved to `directory`.

    `untied` is for the T5 family, whose models are tied in transformers 5 unless a file has an output layer of its own.
    """
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **settings)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval().float()
    if untied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.2)
        del model.all_tied_weights_keys["lm_head.weight"]
    with torch.no_grad():
        for parameter in [one for one in model.parameters() if one.requires_grad]:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    model.save_pretrained(directory)
    save_tokenizer(directory)
    (directory / "tokenizer_config.json").write_text("{}")  # special tokens are those of the ids in config.json
    return model


def distance(ours: Path, theirs: Any) -> float:
    found = load_model(ours)(SRC_BS, TGT_BT, src_mask_BS=SRC_MASK_BS)
    return float((found - logits_of(theirs)).abs().max())


def logits_of(theirs: Any) -> torch.Tensor:
    return theirs(input_ids=SRC_BS, attention_mask=SRC_MASK_BS, decoder_input_ids=TGT_BT).logits


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_family(tmp_path: Path, name: str) -> None:
    kind, settings = MODELS[name]
    theirs = save_model(tmp_path / "hf", kind, settings, untied="t5" in kind and "untied" in name)
    convert(tmp_path / "hf", tmp_path / "ours")
    expected = logits_of(theirs)
    assert expected.std() > 0.1 and expected.isfinite().all()

    limit = 1e-5 * max(1.0, float(expected.abs().max()))
    model = load_model(tmp_path / "ours")
    assert (model(SRC_BS, TGT_BT, src_mask_BS=SRC_MASK_BS) - expected).abs().max() <= limit
    for one in (model, fuse_for_inference(load_model(tmp_path / "ours"))):
        cache = KVCache(one.cache_layers)
        memory_BSD = one.encode(SRC_BS, SRC_MASK_BS)
        pieces = [
            one.logits(one.decode(TGT_BT[:, start:end], memory_BSD, SRC_MASK_BS, cache=cache))
            for start, end in [(0, 5), *((t, t + 1) for t in range(5, TGT_BT.shape[1]))]
        ]
        assert (torch.cat(pieces, dim=1) - expected).abs().max() <= limit

    export_hf(tmp_path / "ours", tmp_path / "back")
    back = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back").eval()
    there, here = theirs.state_dict(), back.state_dict()
    assert there.keys() == here.keys() and back.config.model_type == kind
    for key, tensor in there.items():
        unread = 2 if key in UNREAD else 0
        assert torch.equal(tensor[unread:], here[key][unread:]), key
    assert torch.equal(logits_of(back), expected)
    family, there, here = family_of({"model_type": kind}), theirs.config.to_dict(), back.config.to_dict()
    for key in {*family.keys, "architectures", "eos_token_id", "pad_token_id"} & there.keys():
        assert there[key] == here[key] or {there[key], here[key]} == {"swish", "silu"}, key
    again = convert(tmp_path / "back", tmp_path / "again")
    assert Checkpoint.open(again).config.model == Checkpoint.open(tmp_path / "ours").config.model


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in MODELS.values()}))
def test_loss_and_gradients(tmp_path: Path, kind: str) -> None:
    """Of a batch with padding on both sides, of which some labels are not trained."""
    theirs = save_model(tmp_path / "hf", kind, MODELS[kind][1]).train()
    model = load_model(convert(tmp_path / "hf", tmp_path / "ours")).train()
    labels_BT = torch.cat([TGT_BT[:, 1:], torch.full((2, 1), 2)], dim=1)
    labels_BT[1, 20:] = -100
    labels_BT[0, :3] = -100
    expected = theirs(
        input_ids=SRC_BS, attention_mask=SRC_MASK_BS, decoder_input_ids=TGT_BT, labels=labels_BT, use_cache=False
    ).loss
    expected.backward()

    loss = batch_loss(model, Batch(SRC_BS, SRC_MASK_BS, TGT_BT, labels_BT, None, int((labels_BT >= 0).sum()), 2))
    torch.testing.assert_close(loss.total / loss.tokens, expected.detach(), rtol=1e-6, atol=1e-6)
    (loss.scaled / loss.tokens).backward()
    gradients = {name: one.grad for name, one in theirs.named_parameters() if one.requires_grad}
    family = family_of(theirs.config.to_dict())
    own = {name: one.grad for name, one in model.named_parameters()}
    for one in family.rules(model.config):
        if one.theirs[0] in gradients:
            found = one.op.backward([own.pop(name) for name in one.ours])[0]
            unread = 2 if one.theirs[0] in UNREAD else 0
            torch.testing.assert_close(found[unread:], gradients[one.theirs[0]][unread:], rtol=1e-4, atol=1e-6)
    assert not own.keys() - {"lm_head.bias"}, "a buffer in transformers, which does not train it"


@torch.no_grad()
def test_peft_adapters_go_in_and_out(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    save_model(tmp_path / "hf", "m2m_100", BART)
    settings = {"r": 4, "target_modules": ["q_proj", "out_proj", "fc1"], "init_lora_weights": False}
    base = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf")
    adapted = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", **settings)).eval()
    adapted.save_pretrained(tmp_path / "peft")
    convert(tmp_path / "hf", tmp_path / "base")
    import_peft(tmp_path / "peft", tmp_path / "base", tmp_path / "ours")
    assert distance(tmp_path / "base", adapted) > 0.05
    assert distance(tmp_path / "ours", adapted) <= 1e-5
    export_peft(tmp_path / "ours", tmp_path / "back")
    base = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "back").eval()
    assert (logits_of(again) - logits_of(adapted)).abs().max() <= 1e-5
    assert again.peft_config["default"].task_type == "SEQ_2_SEQ_LM"


@pytest.mark.parametrize("name", ["m2m_100", "marian", "pegasus"])
@torch.no_grad()
def test_older_files(tmp_path: Path, name: str) -> None:
    """A `.bin` with every copy of the embedding and the tables of sinusoids; another with a copy alone."""
    kind, settings = MODELS[name]
    theirs = save_model(tmp_path / "hf", kind, settings)
    (tmp_path / "hf/model.safetensors").unlink()
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    state |= {f"model.{stack}.embed_positions.weights": torch.zeros(1) for stack in ("encoder", "decoder")}
    torch.save(state, tmp_path / "hf/pytorch_model.bin")
    assert distance(convert(tmp_path / "hf", tmp_path / "ours"), theirs) <= 1e-5
    torch.save({**state, "model.encoder.embed_tokens.weight": torch.zeros(300, 32)}, tmp_path / "hf/pytorch_model.bin")
    with pytest.raises(CheckpointError, match="embed_tokens"):
        convert(tmp_path / "hf", tmp_path / "other")
    for copy in ("model.shared.weight", "model.encoder.embed_tokens.weight"):
        state.pop(copy)
    state.pop("final_logits_bias", None)
    torch.save(state, tmp_path / "hf/pytorch_model.bin")
    if hasattr(theirs, "final_logits_bias"):
        theirs.final_logits_bias.zero_()
    assert distance(convert(tmp_path / "hf", tmp_path / "again"), theirs) <= 1e-5


PUBLISHED = {"feed_forward_proj": "gated-gelu", "n_positions": 512, "output_past": True, "tie_word_embeddings": False}


@pytest.mark.parametrize(
    ("kind", "settings", "tied", "scaled"),
    [
        ("t5", {"tie_word_embeddings": None}, True, True),
        ("t5", {"dense_act_fn": "gelu_new", "is_gated_act": True}, False, False),
        ("t5", {"scale_decoder_outputs": False, "tie_word_embeddings": True}, True, False),
        ("mt5", {"tokenizer_class": "T5Tokenizer"}, False, False),
        ("umt5", {"scalable_attention": True}, False, False),
        ("umt5", {"tie_word_embeddings": True}, True, True),
    ],
)
def test_outputs_of_published_t5_models(kind: str, settings: dict[str, Any], tied: bool, scaled: bool) -> None:
    """Whether config.json means a tied and a scaled output layer."""
    model = family_of({"model_type": kind}).to_model({**T5, **PUBLISHED, **settings, "model_type": kind})
    assert (model.tie_embeddings, model.scale_logits) == (tied, scaled)
    assert model.ffn_gated and model.activation == "gelu_tanh"


def test_keys_that_contradict_feed_forward_proj() -> None:
    for wrong in ({"dense_act_fn": "relu"}, {"is_gated_act": False}):
        with pytest.raises(UnsupportedError, match=next(iter(wrong))):
            family_of({"model_type": "t5"}).to_model({**T5, **PUBLISHED, **wrong})


def test_a_token_id_that_the_family_fixes(tmp_path: Path) -> None:
    """M2M100's positions begin after that of padding, which must therefore be token 1."""
    save_model(tmp_path / "hf", "m2m_100", BART)
    change_config(tmp_path / "hf", {"pad_token_id": 5})
    with pytest.raises(UnsupportedError, match="pad_token_id"):
        convert(tmp_path / "hf", tmp_path / "ours")
    change_config(tmp_path / "hf", {"pad_token_id": 1})
    ours = convert(tmp_path / "hf", tmp_path / "ours")
    file = ours / "config.yaml"
    file.write_text(re.sub("  pad: .*", "  pad: '!'", file.read_text()))
    seal(ours)
    with pytest.raises(UnsupportedError, match="pad_token_id"):
        export_hf(ours, tmp_path / "back")
    assert not (tmp_path / "back").exists()


TRANSLATORS = {
    **{name: MODELS[name] for name in ("marian", "mbart", "bart", "pegasus", "t5", "t5 1.1, untied", "umt5")},
    "m2m_100": ("m2m_100", {**BART, "forced_bos_token_id": 250}),
    "marian two vocabularies": MODELS["marian two vocabularies"],
}


@pytest.mark.parametrize("name", TRANSLATORS)
@torch.no_grad()
def test_translations(tmp_path: Path, name: str) -> None:
    """Greedy and with a beam of four, by both engines, from the token that the model's files name."""
    pytest.importorskip("ctranslate2")
    kind, settings = TRANSLATORS[name]
    theirs = save_model(tmp_path / "hf", kind, settings, untied="untied" in name)
    end = theirs.config.eos_token_id
    if hasattr(theirs, "final_logits_bias"):  # let some translations end
        theirs.final_logits_bias[0, end] += 2.5
    else:
        theirs.lm_head.weight[end] *= 4
    theirs.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "ours")
    text = "".join(chr(code) for code in range(32, 127))
    assert release(tmp_path / "ours", tmp_path / "released", text=text)["verdict"] == "pass"
    theirs.generation_config.forced_eos_token_id = None
    for path in (tmp_path / "ours", tmp_path / "released"):
        engine = open_engine(path, device="cpu")
        vocab, start = engine.codec.vocab, engine.codec.start_tokens
        sources = [
            engine.codec.src_vocab.tokens(row[mask].tolist()) for row, mask in zip(SRC_BS, SRC_MASK_BS, strict=True)
        ]
        for beams in (1, 4):
            found = engine.generate(
                sources, GenerationConfig(beam_size=beams, max_length=20, max_length_ratio=0, length_penalty="none")
            )
            expected = theirs.generate(
                input_ids=SRC_BS,
                attention_mask=SRC_MASK_BS,
                num_beams=beams,
                max_new_tokens=20 + len(start) - 1,
                length_penalty=0.0,
                do_sample=False,
            )
            for (best,), row in zip(found, expected.tolist(), strict=True):
                wanted = row[len(start) :]
                wanted = wanted[: wanted.index(end)] if end in wanted else wanted
                assert row[: len(start)] == vocab.ids(start)
                assert vocab.ids(best.tokens) == wanted
