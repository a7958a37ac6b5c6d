"""OpenNMT-py's fixed names of special tokens."""

from __future__ import annotations

import pytest

from onmt_llm.checkpoint.formats.opennmt.vocab import opennmt_names, rename
from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.errors import UnsupportedError


def special(**roles: str | None) -> SpecialTokens:
    return SpecialTokens(**{"unk": "<unk>", "bos": "<s>", "eos": "</s>", **roles})


@pytest.mark.parametrize(
    ("tokens", "roles", "expected"),
    [
        (["<unk>", "<blank>", "<s>", "</s>", "a"], {}, {"<blank>": "<blank>"}),
        (["<unk>", "<s>", "</s>", "<pad>"], {"pad": "<pad>"}, {"<pad>": "<blank>"}),
        (["<unk>", "<s>", "</s>", "<0x00>"], {}, {"<0x00>": "<blank>"}),
        (
            ["[UNK]", "<s>", "<|end|>", "<|unused_3|>"],
            {"unk": "[UNK]", "eos": "<|end|>"},
            {"[UNK]": "<unk>", "<|end|>": "</s>", "<|unused_3|>": "<blank>"},
        ),
        (
            ["<unk>", "<|x|>", "averyunlikelytoken0"],
            {"bos": "<|x|>", "eos": "<|x|>"},
            {"<|x|>": "</s>", "averyunlikelytoken0": "<blank>"},
        ),
    ],
)
def test_roles_become_names(tokens: list[str], roles: dict[str, str], expected: dict[str, str]) -> None:
    names = opennmt_names(tokens, special(**roles))
    assert {old: new for old, new in names.items() if old != new or old == "<blank>"} == expected
    assert set(names) <= set(tokens) and len(set(names.values())) == len(names)


def test_without_a_token_for_padding_the_export_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="needs a padding token") as error:
        opennmt_names(["<unk>", "<s>", "</s>", "a"], special())
    assert "`pad`" in str(error.value.hint)


def test_no_token_is_lost_when_names_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    tokens = ["</s>", "<|end|>", "a"]
    with caplog.at_level("INFO", logger="onmt_llm"):
        assert rename(tokens, {"<|end|>": "</s>"}) == ["<|end|>", "</s>", "a"]
    assert "<|end|> -> </s>" in caplog.text
    assert rename(tokens, {"</s>": "</s>"}) == tokens
