"""Tokens given as ids and tokens given as strings make the same batches."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import pytest

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.transforms.filters import FilterTooLongConfig
from onmt_llm.data.transforms.subword import SubwordConfig
from onmt_llm.text.tokenizers.pieces import Pieces
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer
from onmt_llm.text.vocab import Vocab

TEXT = [
    "the cat sat on the mat",
    "### Instruction:",
    "eat  well",
    "é 你 😀",
    "sleep｟newline｠and eat",
    "｟ent｠ <s> </s>",
]


def corpus(lines: int, marks: float = 0.0) -> str:
    draw = random.Random(3)
    made = []
    for _ in range(lines):
        parts = draw.choices(TEXT, k=draw.randint(1, 5))
        if draw.random() < marks:
            parts.insert(draw.randrange(len(parts)), "｟_mask_before_｠")
        made.append(" ".join(parts) + "\n")
    return "".join(made)


def vocabularies(model: str) -> dict[str, Vocab]:
    tokens = SentencePieceTokenizer(model).vocab_tokens()
    assert tokens is not None
    specials = [token for token in tokens if token in ("<unk>", "<s>", "</s>")]
    others = [token for token in tokens if token not in specials]
    return {
        "the model's": Vocab(tokens, SpecialTokens()),
        "in another order": Vocab([*specials, "<blank>", *reversed(others)], SpecialTokens(pad="<blank>")),
        "with tokens missing": Vocab([*specials, *others[: len(others) // 2]], SpecialTokens()),
    }


@pytest.mark.parametrize("which", ["the model's", "in another order", "with tokens missing"])
@pytest.mark.parametrize("task", ["lm", "seq2seq"])
@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_numbers_and_strings_make_the_same_batches(
    make_pipeline, write, sp_model, bpe_model, monkeypatch, which, task, model_type
):
    file = bpe_model if model_type == "bpe" else sp_model
    paths = {"path_src": write("src", corpus(60, marks=0.5 if task == "lm" else 0.0))}
    if task == "seq2seq":
        paths["path_tgt"] = write("tgt", corpus(60))

    def batches() -> tuple[list[Any], dict[str, Any]]:
        pipeline = make_pipeline(
            {"x": CorpusConfig(**paths)},
            data={"transforms": ["sentencepiece", "filtertoolong"], "zero_out_prompt_loss": True},
            batching={"batch_type": "tokens", "batch_size": 300, "bucket_size": 20},
            options={
                "subword": SubwordConfig(src_subword_model=file, tgt_subword_model=file),
                "filtertoolong": FilterTooLongConfig(src_seq_length=60, tgt_seq_length=60),
            },
            vocab=vocabularies(file)[which],
            task=task,
        )
        taken = [
            (None if b.src_BS is None else b.src_BS.tolist(), b.tgt_BT.tolist(), b.labels_BT.tolist(), b.num_targets)
            for b in islice(iter(pipeline), 12)
        ]
        return taken, {name: counts.to_dict() for name, counts in pipeline.counts.items()}

    by_number = batches()
    assert by_number[1]["x"]["dropped"]
    assert (by_number[1]["x"]["unknown"] > 0) == (which == "with tokens missing")
    monkeypatch.setattr(
        SentencePieceTokenizer,
        "encode_pieces",
        lambda self, texts, *, continuation=False: [self.encode(text, continuation=continuation) for text in texts],
    )
    assert batches() == by_number


def test_a_piece_outside_a_vocabulary_without_unknown_token_is_an_error_only_where_it_occurs(
    make_pipeline, write, bpe_model
):
    from onmt_llm.data.example import IdLookup, Segment
    from onmt_llm.errors import DataError

    tokenizer = SentencePieceTokenizer(bpe_model)
    known = tokenizer.encode("the cat")
    numbers = IdLookup(Vocab(["<s>", *dict.fromkeys(known)], SpecialTokens(unk=None)))

    def ids(text: str) -> bytes:
        segment = Segment(text)
        (encoded,) = tokenizer.encode_pieces([text])
        assert isinstance(encoded, Pieces)
        segment.tokenized(encoded)
        return numbers(segment)[0]

    assert len(ids("the cat")) == 4 * len(known)
    with pytest.raises(DataError, match="must be in the vocabulary"):
        ids("the dog")
