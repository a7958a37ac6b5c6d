"""One Transformer under many configs: caching, padding, packing, dropout, checkpointing, construction."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import tiny
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.rope import RopeConfig
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.nn import masks
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.layers.stack import add_noise
from onmt_llm.nn.positions import Positions, packed, relative_index
from onmt_llm.nn.transformer import Transformer, set_dropout, set_embedding_noise

BOUND = 1e-5
DECODERS = {
    "llama": tiny.LLAMA,
    "mqa-parallel-shared": dict(kv_heads=1, position="rotary", parallel_residual=True, shared_norm=True),
    "partial-rotary-window-qk-norm": dict(
        position="rotary", sliding_window=3, qk_norm=True, rope=RopeConfig(rotary_dim=4), kv_heads=2
    ),
    "window-in-some-layers": dict(
        **dict(position="rotary", sliding_window=3, layer_types=["full_attention", "sliding_attention"]),
        **dict(rope=RopeConfig(local_theta=50.0, scaling="linear", factor=4.0), norm="rmsnorm"),
        **dict(norm_position="both", attention_scale=0.3, kv_heads=2),
    ),
    "rotary-in-some-layers": dict(position="rotary", rope_layers=[True, False], norm_position="output"),
    "soft-caps": dict(position="rotary", attention_softcap=0.3, logit_softcap=0.5, kv_heads=2, sliding_window=4),
    "alibi-window-in-some-layers": dict(
        position="alibi", sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "alibi": dict(position="alibi"),
    "alibi-window-gqa": dict(position="alibi", sliding_window=4, kv_heads=2),
    "alibi-falcon": dict(position="alibi", alibi_scaled=True, kv_heads=2),
    "learned": dict(position="learned", max_position=16, tie_embeddings=True, lm_head_bias=True),
    "sinusoidal-post": dict(position="sinusoidal", norm_position="post", scale_embeddings=True),
    "no-positions": dict(position="none"),
    "sinusoidal-concat": dict(position="sinusoidal", sinusoid="concat"),
    "sinusoidal-fairseq": dict(position="sinusoidal", sinusoid="fairseq", embed_norm=True),
    "shaw": dict(position="shaw", relative_positions=3),
    "shaw-window-gqa": dict(position="shaw", relative_positions=2, sliding_window=4, kv_heads=2),
    "t5": dict(position="t5", relative_buckets=4, relative_max_distance=6, scale_attention=False, scale_logits=True),
    "t5-shared-gqa": dict(
        position="t5", relative_buckets=6, relative_max_distance=8, relative_shared=True, kv_heads=2, norm="rmsnorm"
    ),
}
ENCODER_DECODERS = {
    "marian": dict(encoder_layers=2, norm_position="post", share_embeddings=True, tie_embeddings=True),
    "modern": dict(encoder_layers=1, src_vocab_size=40, **tiny.LLAMA),
    "both-norms-window-in-some-layers": dict(
        **dict(encoder_layers=1, position="rotary", rope_layers=[False, True], norm_position="both"),
        **dict(sliding_window=2, layer_types=["full_attention", "sliding_attention"]),
    ),
    "output-norms": dict(encoder_layers=1, norm_position="output"),
    "alibi": dict(encoder_layers=1, position="alibi"),
    "shaw": dict(encoder_layers=2, position="shaw", relative_positions=2, kv_heads=2),
    "t5": dict(encoder_layers=2, position="t5", relative_buckets=4, relative_max_distance=6, relative_shared=True),
    "t5-per-layer": dict(encoder_layers=1, position="t5", relative_buckets=4, relative_max_distance=6),
}
FEATURES = [dict(vocab_size=7, size=5), dict(vocab_size=3, size=3)]


def build(**extra: object) -> Transformer:
    return tiny.build(tiny.config(**{"vocab_size": 50, **extra})).eval()


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=BOUND, rtol=0)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_cached_equals_full_forward(name: str) -> None:
    model, ids = build(**DECODERS[name]), tiny.token_ids(2, 9)
    cache = KVCache(2)
    pieces = [model(ids[:, a:b], cache=cache) for a, b in ((0, 4), (4, 6), (6, 7), (7, 8), (8, 9))]
    close(torch.cat(pieces, dim=1), model(ids))
    assert cache.length == 9


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_left_padded_prompt_does_not_see_its_neighbours(name: str) -> None:
    model, ids = build(**DECODERS[name]), tiny.token_ids(3, 8)
    pad = torch.tensor([0, 3, 7])
    rows = torch.stack([F.pad(row[: 8 - n], (n, 0)) for row, n in zip(ids, pad.tolist(), strict=True)])
    cache = KVCache(2, left_pad_B=pad)
    batched = torch.cat([model(rows[:, :5], cache=cache), model(rows[:, 5:7], cache=cache)], dim=1)
    batched = torch.cat([batched, model(rows[:, 7:], cache=cache)], dim=1)
    assert batched.isfinite().all()
    for i, n in enumerate(pad.tolist()):
        close(batched[i, n:], model(ids[i : i + 1, : 8 - n])[0])


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_packed_documents_equal_separate_sequences(name: str) -> None:
    model, ids = build(**DECODERS[name]), tiny.token_ids(2, 9)
    doc = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0, 0], [3, 4, 4, 4, 4, 4, 5, 5, 5]])
    packed = model(ids, doc_BT=doc)
    for row, start, end in ((0, 0, 3), (0, 3, 7), (1, 0, 1), (1, 1, 6), (1, 6, 9)):
        close(packed[row, start:end], model(ids[row : row + 1, start:end])[0])


@torch.no_grad()
def test_right_padding_takes_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(k) or kernel(*a, **k))
    model, ids = build(**tiny.LLAMA), tiny.token_ids(2, 9)
    padded = model(F.pad(ids, (0, 4)))
    assert all(call["attn_mask"] is None and call["is_causal"] for call in calls)
    close(padded[:, :9], model(ids))


@torch.no_grad()
def test_sliding_window_forgets_what_is_beyond_it() -> None:
    model = build(**DECODERS["partial-rotary-window-qk-norm"])
    ids, other = tiny.token_ids(1, 8), tiny.token_ids(1, 8)
    other[0, 0] = 45
    reach = 2 * (3 - 1)  # two layers of window 3
    ours, theirs = model(ids)[0], model(other)[0]
    assert (ours[reach] - theirs[reach]).abs().max() > 1e-4
    close(ours[reach + 1 :], theirs[reach + 1 :])


@pytest.mark.parametrize("name", ENCODER_DECODERS)
@torch.no_grad()
def test_encoder_decoder_padding_and_cache(name: str) -> None:
    model, src, tgt = build(**ENCODER_DECODERS[name]), tiny.token_ids(3, 6), tiny.token_ids(3, 5, seed=2)
    lengths = torch.tensor([6, 4, 0])
    mask = torch.arange(6) < lengths[:, None]
    full = model(src * mask, tgt, src_mask_BS=mask)
    assert full.isfinite().all()
    close(full[1], model(src[1:2, :4], tgt[1:2])[0])

    cache, memory = KVCache(2), model.encode(src * mask, mask)
    first = model.decode(tgt[:, :2], memory, mask, cache=cache)
    idx = torch.tensor([1, 0, 1])
    cache.reorder(idx)
    rest = model.decode(tgt[idx, 2:], None, mask[idx], cache=cache)
    close(model.logits(first), full[:, :2])
    close(model.logits(rest), full[idx, 2:])


def reference_shaw(model: Transformer, x_TD: torch.Tensor, causal: bool) -> torch.Tensor:
    """Equations 3 and 4 of Shaw et al. 2018, pair by pair, for one head at a time."""
    attention = model.decoder.layers[0].self_attn
    q, k, v = (getattr(attention, f"{n}_proj")(x_TD).view(len(x_TD), 4, 8) for n in "qkv")
    table, limit = attention.embed_relative.weight, model.config.relative_positions
    out = torch.zeros_like(q)
    for i in range(len(x_TD)):
        keys = range(i + 1 if causal else len(x_TD))
        a = [table[max(-limit, min(limit, j - i)) + limit] for j in keys]
        for n in range(4):
            scores = torch.stack([q[i, n] @ (k[j, n] + a[j]) / 8**0.5 for j in keys]).softmax(0)
            out[i, n] = sum(scores[j] * (v[j, n] + a[j]) for j in keys)
    return attention.o_proj(out.flatten(1))


@torch.no_grad()
def test_shaw_attention_is_that_of_the_paper() -> None:
    model = build(**DECODERS["shaw"])
    attention_ = model.decoder.layers[0].self_attn
    x, positions = torch.randn(1, 7, 32), Positions(0, 7)
    for causal in (True, False):
        index = relative_index(model.config, positions, x.device, causal=causal)
        every = masks.decoder_masks(model.config, positions, x.device)
        mask = every["full_attention"] if causal else masks.Mask()
        close(attention_(x, mask, relative_TS=index)[0], reference_shaw(model, x[0], causal))


@pytest.mark.parametrize("name", ["marian", "modern", "shaw"])
@torch.no_grad()
def test_alignment_is_the_cross_attention(name: str) -> None:
    model, src, tgt = build(**ENCODER_DECODERS[name]), tiny.token_ids(2, 6), tiny.token_ids(2, 5, seed=2)
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    memory = model.encode(src, mask)
    hidden, one = model.decode_with_alignment(tgt, memory, mask, align=(-1, 1))
    close(hidden, model.decode(tgt, memory, mask))
    every = model.decode_with_alignment(tgt, memory, mask, align=(1, 0))[1]
    assert one.shape == every.shape == (2, 5, 6)
    close(every.sum(-1), torch.ones(2, 5))
    assert not every[1, :, 4:].any() and (one - every).abs().max() > 1e-4
    cache = KVCache(2)
    steps = [model.decode_with_alignment(tgt[:, :2], memory, mask, cache=cache, align=(1, 0))[1]]
    steps += [
        model.decode_with_alignment(tgt[:, t : t + 1], None, mask, cache=cache, align=(1, 0))[1] for t in range(2, 5)
    ]
    close(torch.cat(steps, dim=1), every)
    # the last position sees the whole target either way
    wide = model.decode_with_alignment(
        tgt, memory, mask, align=(1, 0), full_context_BT=torch.ones(2, 5, dtype=torch.bool)
    )
    close(wide[0], hidden)
    close(wide[1][:, -1], every[:, -1])
    assert (wide[1][:, 0] - every[:, 0]).abs().max() > 1e-5
    with pytest.raises(ConfigError, match="alignment_layer is 2"):
        model.decode_with_alignment(tgt, memory, mask, align=(2, 0))


@pytest.mark.parametrize("merge", ["concat", "sum"])
def test_source_features(merge: str) -> None:
    features = FEATURES if merge == "concat" else [dict(f, size=32) for f in FEATURES]
    model = build(encoder_layers=1, src_features=features, feat_merge=merge, share_embeddings=merge == "sum")
    src, tgt = tiny.token_ids(2, 6), tiny.token_ids(2, 5, seed=2)
    feats = torch.stack([src % 7, src % 3], dim=-1)
    logits = model(src, tgt, features_BSF=feats)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    other = feats.clone()
    other[1, 3, 1] = (other[1, 3, 1] + 1) % 3
    with torch.no_grad():
        changed = model(src, tgt, features_BSF=other)
    assert torch.equal(changed[0], logits[0]) and not torch.equal(changed[1], logits[1])
    with pytest.raises(DataError, match="must have 2 features, but has 0"):
        model(src, tgt)


@torch.no_grad()
def test_encoder_only_gives_memory() -> None:
    model = build(encoder_layers=2, decoder_layers=0)
    assert model(tiny.token_ids(2, 6)).shape == (2, 6, 32)
    with pytest.raises(ConfigError, match="decoder_layers: 0"):
        model.logits(torch.zeros(1, 1, 32))


def test_dropout_is_active_in_training_only_and_can_be_changed() -> None:
    model, ids = build(**tiny.LLAMA), tiny.token_ids(2, 7)
    expected = model(ids)
    set_dropout(model, 0.3, 0.3)
    close(model(ids), expected)
    model.train()
    assert not torch.equal(model(ids), model(ids))
    set_dropout(model, 0.0, 0.0)
    close(model(ids), expected)


@torch.no_grad()
def test_meta_construction_then_load() -> None:
    """Position tables are no part of the state, and exist whatever way the weights came."""
    for extra in (tiny.LLAMA, DECODERS["sinusoidal-post"], DECODERS["alibi"], DECODERS["shaw"], DECODERS["t5"]):
        model, ids = build(**extra), tiny.token_ids(2, 7)
        with torch.device("meta"):
            copy = Transformer(model.config)
        assert copy(ids.to("meta")).shape == (2, 7, 50)
        copy.load_state_dict(model.state_dict(), assign=True)
        close(copy.eval()(ids), model(ids))
        assert not list(copy.buffers())


def test_tables_built_under_inference_mode_serve_training_in_another_type() -> None:
    model, ids = build(**tiny.LLAMA), tiny.token_ids(2, 7)
    with torch.inference_mode():
        expected = model(ids)
    model(ids).sum().backward()
    logits = model.bfloat16()(ids)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().max() < 0.05
    close(model.float()(ids.repeat(1, 50))[:, :7], model(ids))


@pytest.mark.parametrize("name", ["shaw", "t5-shared-gqa", "t5"])
def test_relative_positions_train_in_bf16(name: str) -> None:
    model, ids = build(**DECODERS[name]), tiny.token_ids(2, 7)
    expected = model(ids).detach()
    model.bfloat16()(ids).float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (model(ids).float() - expected).abs().max() < 0.1


def test_tensor_names() -> None:
    model = build(encoder_layers=1, decoder_layers=1, qk_norm=True, ffn_gated=True, share_embeddings=True)
    names = set(model.state_dict())
    attn = [f"{p}.weight" for p in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
    block = [f"self_attn.{n}" for n in attn] + [f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")]
    block += [f"{n}.{p}" for n in ("attn_norm", "mlp_norm") for p in ("weight", "bias")]
    cross = [f"cross_attn.{n}" for n in attn] + ["cross_norm.weight", "cross_norm.bias"]
    expected = {f"{s}.layers.0.{n}" for s in ("encoder", "decoder") for n in block}
    expected |= {f"decoder.layers.0.{n}" for n in cross}
    expected |= {f"{s}.norm.{p}" for s in ("encoder", "decoder") for p in ("weight", "bias")}
    assert names == expected | {"decoder.embed_tokens.weight", "lm_head.weight"}

    tied = build(tie_embeddings=True, lm_head_bias=True, position="learned", shared_norm=True, parallel_residual=True)
    names = set(tied.state_dict())
    assert "lm_head.bias" in names and "lm_head.weight" not in names
    assert "decoder.embed_positions.weight" in names
    assert not any("mlp_norm" in name for name in names)


def test_errors() -> None:
    with pytest.raises(ConfigError, match="vocab_size must be >= 1"):
        build(vocab_size=0)
    with pytest.raises(ConfigError, match="parallel_residual"):
        build(parallel_residual=True, norm_position="post")
    with pytest.raises(DataError, match="at most max_position = 16 tokens"):
        build(**DECODERS["learned"])(tiny.token_ids(1, 17))
    with pytest.raises(ConfigError, match="encoder_layers: 0"):
        build().encode(tiny.token_ids(1, 3))
    with pytest.raises(TypeError, match="takes 1 tensor"):
        build()(tiny.token_ids(1, 3), tiny.token_ids(1, 3))


def test_embedding_noise_is_as_large_as_asked_and_for_training_only() -> None:
    x_BTD = torch.zeros(3, 8, 50)
    torch.manual_seed(0)
    noise = add_noise(x_BTD, 5.0, Positions(0, 8))
    bound = 5.0 / (8 * 50) ** 0.5
    assert 0.99 * bound < noise.abs().max() <= bound
    assert noise.mean().abs() < 0.05 * bound
    doc_BT = torch.tensor([[1, 1, 2, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1, 1], [1, 2, 2, 2, 3, 3, 3, 3]])
    peaks = add_noise(x_BTD, 5.0, packed(doc_BT)).abs().amax(-1) * 50**0.5 / 5.0
    lengths = torch.tensor([[2.0] * 2 + [5] * 5 + [1], [8] * 8, [1] + [3] * 3 + [4] * 4])
    torch.testing.assert_close(peaks, lengths.rsqrt(), rtol=0.2, atol=0)
    config = ModelConfig(vocab_size=20, hidden_size=16, heads=2, decoder_layers=1, ffn_size=16)
    model, ids = Transformer(config), torch.tensor([[1, 5, 3]])
    expected = model(ids)
    set_embedding_noise(model, 5.0)
    assert (model(ids) - expected).abs().max() > 1e-3
    assert torch.equal(model.eval()(ids), expected)
