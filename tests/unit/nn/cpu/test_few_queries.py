import pytest
import torch

from onmt_llm.nn.cpu.few_queries import are_few, attend_few
from onmt_llm.nn.layers.attention import attend, attend_plain
from onmt_llm.nn.masks import Mask


def _inputs(*, batch=3, heads=4, queries=1, keys=37, room=48, dtype=torch.bfloat16):
    torch.manual_seed(0)
    q = torch.randn(batch, heads, queries, 32)
    k, v = torch.randn(2, batch, heads, room, 32)
    return q.to(dtype), k.to(dtype)[:, :, :keys], v.to(dtype)[:, :, :keys]


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keys", [37, 3000])  # 3,000 keys are converted head by head
def test_it_computes_attention_in_float32(queries, masked, keys):
    q, k, v = _inputs(queries=queries, keys=keys, room=keys + 5)
    seen = torch.rand(3, 1, 1, keys) < 0.7
    mask = Mask(seen if masked else None)
    found = attend_few(q, k, v, mask.as_float(queries, keys), 0.2)
    expected = attend_plain(q.float(), k.float(), v.float(), mask, 0.2)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=1e-2, rtol=1e-2)


def test_a_transposed_query_of_the_layers_is_accepted():
    q, k, v = _inputs(queries=5)
    apart = q.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(attend_few(apart, k, v, None, 0.2), attend_few(q, k, v, None, 0.2))


@torch.inference_mode()
def test_attention_of_one_query_is_close_to_float32(monkeypatch):
    monkeypatch.setattr("onmt_llm.nn.layers.attention._CPU_HAS_BF16", True)
    q, k, v = _inputs()
    assert are_few(q, k)
    found = attend(q, k, v, Mask())
    torch.testing.assert_close(found.float(), attend(q.float(), k.float(), v.float(), Mask()), atol=1e-2, rtol=1e-2)


def test_longer_inputs_are_not_few():
    q, k, _ = _inputs(queries=30)
    assert not are_few(q, k)
    assert not are_few(q[:, :, :1].float(), k.float())


def test_autocast_changes_nothing():
    q, k, v = _inputs()
    with torch.autocast("cpu", torch.bfloat16):
        found = attend_few(q, k, v, None, 0.2)
    assert torch.equal(found, attend_few(q, k, v, None, 0.2))
