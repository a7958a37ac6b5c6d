"""Options of a corpus: patterns, scores, keys, rows, bad lines, limits, shuffling."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from onmt_llm.config.compat import translate as aliases
from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.data.corpus import Corpus
from onmt_llm.data.example import Example
from onmt_llm.data.readers import check_readers
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.errors import DataError
from onmt_llm.text.templates.builtin import get_template
from onmt_llm.text.vocab import Vocab
from tiny_codecs import make_codec, make_spec


@pytest.fixture
def read(vocab):
    """`read(corpus)`: the texts of its examples, and what was counted; a language model, or a translation model."""

    def examples(config: CorpusConfig, *, template: str | None = None, **data) -> tuple[list[str], dict[str, int]]:
        task = "seq2seq" if config.path_tgt else "lm"
        model = make_codec(task, both, template=template and get_template(template))
        corpus = Corpus("c", make_spec({"c": config}, model, DataConfig(**data)))
        check_readers([corpus.reader])
        counts = CorpusCounts()
        records = [record for record in iter(corpus.reader.read, None) if corpus.examples([record], counts)]
        found = [text(example) for record in records for example in corpus.raw(record)]
        dropped = dict(counts.dropped)
        assert counts.read == len(found) + sum(dropped.values())
        return found, dropped

    both = Vocab([*vocab, "<|im_start|>", "<|im_end|>"], vocab.specials)
    return examples


def text(example: Example) -> str:
    return "|".join(
        "".join(s.text or "".join(s.tokens or ()) for s in side) for side in (example.src, example.tgt) if side
    )


def test_patterns_name_files_in_the_order_of_their_names(write, tmp_path, read):
    for number in (2, 10, 1):
        write(f"part.{number:02}.txt", f"{number}\n")
    write("last[1].txt", "last\n")
    paths = [str(tmp_path / "part.*.txt"), str(tmp_path / "last[1].txt")]
    assert read(CorpusConfig(path_src=paths)) == (["1", "2", "10", "last"], {})


def test_a_record_of_many_files_names_its_own(write, tmp_path, read):
    write("a.1", "one\n"), write("a.2", b"two\nbad \xff\n")
    with pytest.raises(DataError, match=r"a\.2:2 holds the byte 0xff at offset 8"):
        read(CorpusConfig(path_src=str(tmp_path / "a.*")))


def test_low_scores_are_left_out_and_counted(write, read):
    corpus = CorpusConfig(
        path_src=write("s", "a\nb\nc\n"),
        path_tgt=write("t", "x\ny\nz\n"),
        path_sco=write("n", "0.9\n0.1\n5e-1\n"),
        score_threshold=0.5,
    )
    assert read(corpus) == (["a|x", "c|z"], {"low_score": 1})


def test_bad_lines_are_left_out_and_counted_by_reason_when_asked(write, read, caplog):
    lines = [b'{"text": "a"}', b'{"text": "\xff"}', b"{", b'{"text": 3}', b'{"txt": ""}', b"", b'{"text": "b"}']
    corpus = CorpusConfig(path_jsonl=write("a", b"\n".join(lines)))
    wanted = {"bad_utf8": 1, "bad_json": 1, "bad_record": 2, "empty": 1}
    assert read(corpus, on_bad_line="skip") == (["a", "b"], wanted)
    assert "bad utf8 examples" in caplog.text and "a:2 holds the byte" in caplog.text
    with pytest.raises(DataError, match="a:2 holds"):
        read(corpus)


def test_damage_that_shifts_rows_is_never_skipped(write, read):
    corpus = CorpusConfig(path_table=write("a.csv", 'text,n\n5" disk,1\nlost,2\n6" disk,3\n'))
    with pytest.raises(DataError, match=r"a\.csv:2 must be a valid row"):
        read(corpus, on_bad_line="skip")


def test_over_long_lines_are_left_out_and_their_neighbours_are_whole(write, read):
    long = "x" * 5000
    assert read(CorpusConfig(path_src=write("a", f"one\n{long}\ntwo\n")), max_record_bytes=1024) == (
        ["one", "two"],
        {"too_many_bytes": 1},
    )


def test_rows_with_and_without_a_header(write, read):
    rows = 'prompt,answer\n"a, ""b""",c\n\nd,"e\nf"\n'
    assert read(CorpusConfig(path_table=write("a.csv", rows))) == (['a, "b"|c', "d|e\nf"], {"empty": 1})
    plain = CorpusConfig(
        path_table=write("b.tsv", 'say "a"\tb\n'), columns=["question", "reply"], prompt_key="question"
    )
    assert read(plain.model_copy(update={"answer_key": "reply"})) == (['say "a"|b'], {})
    assert read(CorpusConfig(path_table=write("c.tsv", "x;text\n1;b\n"), delimiter=";")) == (["b"], {})


def test_named_keys_come_before_known_ones(write, read):
    item = {"text": "whole", "q": "ask", "more": "this", "a": "answer", "sys": "be kind"}
    path = write("j", json.dumps(item))
    keys = {"prompt_key": "q", "input_key": "more", "answer_key": "a"}
    assert read(CorpusConfig(path_jsonl=path)) == (["whole"], {})
    assert read(CorpusConfig(path_jsonl=path, **keys)) == (["ask\n\nthis|answer"], {})
    (chat,), _ = read(CorpusConfig(path_jsonl=path, system_key="sys", template="chatml", **keys))
    assert chat.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nask\n\nthis<|im_end|>")


def test_axolotls_names_of_keys_mean_ours(write, read):
    axolotl = {
        "path_jsonl": write("j", json.dumps({"chat": [{"who": "me", "says": "Hi"}, {"who": "bot", "says": "Hello"}]})),
        "field_messages": "chat",
        "message_property_mappings": {"role": "who", "content": "says"},
        "roles": {"user": ["me"], "assistant": ["bot"]},
        "template": "chatml",
    }
    translated = aliases.translate({"data": {"c": axolotl}}, {"data"}).values["data"]["c"]
    (chat,), _ = read(CorpusConfig(**translated))
    assert "<|im_start|>user\nHi<|im_end|>" in chat and "<|im_start|>assistant\nHello<|im_end|>" in chat
    older = {"field_instruction": "q", "field_output": "a", "message_field_role": "r", "role_key": "explicit"}
    assert aliases.translate({"data": {"c": older}}, {"data"}).values["data"]["c"] == {
        "prompt_key": "q",
        "answer_key": "a",
        "role_key": "explicit",
    }


def test_a_shuffled_corpus_has_another_order_in_every_epoch_and_goes_on_where_it_was(make_pipeline, write, words):
    corpora = {"x": CorpusConfig(path_src=write("x", words(60, 1)), shuffle="global")}

    def order(pipeline, number):
        return [batch.tgt_BT.tolist() for batch in islice(pipeline, number)]

    first = order(make_pipeline(corpora), 30)
    assert first == order(make_pipeline(corpora), 30) != order(make_pipeline(corpora, seed=8), 30)
    pipeline = make_pipeline(corpora)
    order(pipeline, 17)
    restored = make_pipeline(corpora)
    restored.load_state_dict(json.loads(json.dumps(pipeline.state_dict())))
    assert order(restored, 13) == first[17:]


def test_without_a_seed_a_corpus_is_read_in_order(write, read):
    # as samples and vocabularies do, and validation
    assert read(CorpusConfig(path_src=write("a", "1\n2\n3\n"), shuffle="global")) == (["1", "2", "3"], {})


def test_what_the_chat_page_exports_is_a_corpus(write, read):
    messages = [("system", "Be kind."), ("user", "one & <two>"), ("assistant", "1"), ("user", "q"), ("assistant", "2")]
    line = {"title": "one", "messages": [{"role": role, "content": content} for role, content in messages]}
    (chat,), dropped = read(CorpusConfig(path_jsonl=write("talks", json.dumps(line)), template="chatml"))
    assert not dropped and chat.startswith(
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\none & <two><|im_end|>"
    )
    assert chat.rstrip().endswith("<|im_start|>assistant\n2<|im_end|>")
