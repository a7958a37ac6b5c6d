"""Token shards give the batches of the text they were made from, are never stale, and other programs' shards open."""

from __future__ import annotations

import json
import os
import shutil
import struct
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from onmt_llm.cli.data import main
from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.data import pack
from onmt_llm.data.example import IGNORED, Encoded
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.data.token_shards.records import TokenDecoder, parts_of
from onmt_llm.data.token_shards.shard import PackReader, ShardWriter
from onmt_llm.data.transforms.chunk import ChunkConfig
from onmt_llm.data.transforms.filters import FilterTooLongConfig
from onmt_llm.data.transforms.subword import SubwordConfig
from onmt_llm.data.transforms.truncate import TruncateConfig
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.text.vocab import Vocab
from tiny_codecs import make_codec, make_spec

FIXTURES = Path(__file__).parents[3] / "data/tokens"
OPTIONS = {
    "filtertoolong": FilterTooLongConfig(src_seq_length=10, tgt_seq_length=9),
    "truncate": TruncateConfig(truncate_length=6),
    "chunk": ChunkConfig(chunk_length=4),
}
TRANSFORMS = {"transforms": ["filtertoolong"], "skip_empty_level": "silent"}


def rows(batch):
    src = None if batch.src_BS is None else batch.src_BS.tolist()
    return src, batch.tgt_BT.tolist(), batch.labels_BT.tolist(), batch.num_targets, batch.num_examples


def pack_all(corpora, model, folder, *, options=OPTIONS, data=TRANSFORMS, **more):
    return pack.pack(make_spec(corpora, model, DataConfig(**data), options=options), folder, **more)


def packed(corpora, folder):
    return {name: corpus.model_copy(update={"path_packed": str(folder)}) for name, corpus in corpora.items()}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(pack, "SHARD_RECORDS", 16)


@pytest.fixture
def texts(write, words):
    """Long and empty examples, unknown words, prompts that are not trained."""
    prompts = "".join(
        json.dumps({"prompt": prompt, "answer": answer}) + "\n"
        for prompt, answer in zip(words(25, 5).splitlines(), ["b c", "", "zebra"] * 8 + ["a"], strict=True)
    )
    return {
        "x": CorpusConfig(path_src=write("x", words(50, 1) + "\n" + words(20, 2)), weight=3),
        "y": CorpusConfig(path_jsonl=write("y", prompts), transforms=[], template="alpaca"),
    }


@pytest.fixture
def pairs(write, words):
    return {"p": CorpusConfig(path_src=write("s", words(60, 3)), path_tgt=write("t", words(60, 4)))}


@pytest.mark.parametrize("task", ["lm", "seq2seq"])
@pytest.mark.parametrize("batching", [{}, {"batch_type": "tokens", "batch_size": 60, "num_workers": 1}])
@pytest.mark.parametrize("rank", [(0, 1), (1, 2)])
def test_every_batch_and_count_is_that_of_the_text(make_pipeline, texts, pairs, vocab, tmp_path, task, batching, rank):
    corpora = texts if task == "lm" else pairs
    pack_all(corpora, make_codec(task, vocab), tmp_path / "packs")
    settings = {"task": task, "options": OPTIONS, "rank": rank[0], "world_size": rank[1]}
    text = make_pipeline(corpora, TRANSFORMS, batching, **settings)
    tokens = make_pipeline(packed(corpora, tmp_path / "packs"), TRANSFORMS, batching, **settings)
    for one, other in islice(zip(text, tokens, strict=True), 60):
        assert rows(one) == rows(other)
        assert text.counts == tokens.counts
    assert all(counts.dropped for counts in tokens.counts.values())


def test_a_restored_run_continues_with_the_very_next_batch(make_pipeline, texts, vocab, tmp_path):
    pack_all(texts, make_codec("lm", vocab), tmp_path)
    make = lambda: make_pipeline(packed(texts, tmp_path), TRANSFORMS, options=OPTIONS)  # noqa: E731
    expected = [rows(batch) for batch in islice(make(), 40)]
    for stop in (1, 7, 18):
        first, second = make(), make()
        assert [rows(batch) for batch in islice(first, stop)] == expected[:stop]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert [rows(batch) for batch in islice(second, 10)] == expected[stop : stop + 10]


def test_a_corpus_for_validation_is_packed_as_it_is_validated(make_pipeline, write, words, vocab, tmp_path):
    corpora = {
        "x": CorpusConfig(path_src=write("x", words(9, 1))),
        "valid": CorpusConfig(path_src=write("v", words(9, 2))),
    }
    pack_all(corpora, make_codec("lm", vocab), tmp_path)
    valid = {"valid": corpora["valid"]}
    text = make_pipeline(valid, TRANSFORMS, options=OPTIONS, training=False)
    tokens = make_pipeline(packed(valid, tmp_path), TRANSFORMS, options=OPTIONS, training=False)
    assert [rows(batch) for batch in text] == [rows(batch) for batch in tokens]


def test_the_files_do_not_depend_on_the_number_of_processes(texts, vocab, tmp_path):
    one = pack_all(texts, make_codec("lm", vocab), tmp_path / "one")
    two = pack_all(texts, make_codec("lm", vocab), tmp_path / "two", run=pack.on_this_machine(2))
    for name, folder in one.items():
        assert folder.name == two[name].name
        for file in folder.iterdir():
            assert file.read_bytes() == (two[name] / file.name).read_bytes(), file
    assert len(list(one["x"].glob("*.bin"))) == 5


def test_what_is_packed_already_is_left_alone_and_nothing_unfinished_stays(texts, vocab, tmp_path, write):
    model = make_codec("lm", vocab)
    folder = pack_all(texts, model, tmp_path / "packs")["x"]
    before = (folder / "index.json").stat().st_mtime_ns
    assert pack_all(texts, model, tmp_path / "packs")["x"] == folder
    assert (folder / "index.json").stat().st_mtime_ns == before
    broken = {"x": CorpusConfig(path_src=write("b", b"a b\n\xff\n"))}
    with pytest.raises(DataError, match="UTF-8"):
        pack_all(broken, model, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


class TestNeverStale:
    @pytest.fixture
    def reopen(self, make_pipeline, texts, vocab, tmp_path):
        pack_all({"x": texts["x"]}, make_codec("lm", vocab), tmp_path / "packs")

        def reopen(data=TRANSFORMS, **overrides):
            corpora = packed({"x": texts["x"]}, tmp_path / "packs")
            return make_pipeline(corpora, data, **{"options": OPTIONS, **overrides})

        return reopen

    def test_a_changed_file_is_noticed_and_a_touched_one_read_again(self, reopen, texts):
        file = Path(texts["x"].path_src)
        os.utime(file, ns=(1, 1))
        next(iter(reopen()))
        content = file.read_bytes()
        file.write_bytes(content.replace(b"a", b"b"))
        with pytest.raises(DataError, match="packs that differ in files"):
            reopen()
        file.write_bytes(content)
        next(iter(reopen()))

    def test_other_options_are_noticed(self, reopen, vocab):
        with pytest.raises(DataError, match="packs that differ in transforms"):
            reopen(options={"filtertoolong": FilterTooLongConfig(src_seq_length=11)})
        with pytest.raises(DataError, match="packs that differ in transforms"):
            reopen({"transforms": ["filtertoolong", "prefix"]})
        with pytest.raises(DataError, match="packs that differ in data"):
            reopen({**TRANSFORMS, "zero_out_prompt_loss": True})
        with pytest.raises(DataError, match="packs that differ in vocab"):
            reopen(vocab=Vocab([*vocab, "new"], SpecialTokens(pad="<blank>")))
        with pytest.raises(DataError, match="packs that differ in add_bos"):
            reopen(add_bos=False)

    def test_what_changes_no_example_may_change(self, reopen):
        next(iter(reopen({**TRANSFORMS, "skip_empty_level": "warning", "n_sample": 3}, seed=99)))

    def test_another_tokeniser_under_the_same_name_is_noticed(self, make_pipeline, write, sp_model, vocab, tmp_path):
        model = tmp_path / "sp.model"
        shutil.copyfile(sp_model, model)
        options = {"subword": SubwordConfig(src_subword_model=str(model))}
        corpora, data = {"x": CorpusConfig(path_src=write("x", "the cat\n"))}, {"transforms": ["sentencepiece"]}
        pack_all(corpora, make_codec("lm", vocab), tmp_path / "packs", options=options, data=data)
        make_pipeline(packed(corpora, tmp_path / "packs"), data, options=options)
        # a field of the trainer's own: another file, the same pieces
        model.write_bytes(model.read_bytes() + b"\x12\x02\x10\x05")
        with pytest.raises(DataError, match="packs that differ in transforms"):
            make_pipeline(packed(corpora, tmp_path / "packs"), data, options=options)


@pytest.mark.parametrize("transform", ["truncate", "chunk"])
def test_examples_that_are_cut_or_made_are_counted_as_those_of_the_text(
    make_pipeline, write, words, vocab, tmp_path, transform
):
    corpora = {"x": CorpusConfig(path_src=write("x", words(60, 3)), transforms=[transform])}
    pack_all(corpora, make_codec("lm", vocab), tmp_path)
    text = make_pipeline(corpora, TRANSFORMS, options=OPTIONS)
    tokens = make_pipeline(packed(corpora, tmp_path), TRANSFORMS, options=OPTIONS)
    for one, other in islice(zip(text, tokens, strict=True), 40):
        assert rows(one) == rows(other) and text.counts == tokens.counts
    counts = tokens.counts["x"]
    assert counts.read + counts.made == counts.kept + counts.dropped.total()
    assert counts.truncated if transform == "truncate" else counts.made


@pytest.mark.parametrize("transform", ["docify", "deduplicate"])
def test_transforms_that_look_at_several_examples_are_refused_by_name(pairs, vocab, tmp_path, transform):
    with pytest.raises(ConfigError, match=f"by itself, but '{transform}' of corpus 'p' looks at several"):
        pack_all(pairs, make_codec("seq2seq", vocab), tmp_path, data={"transforms": [transform]})


def test_random_transforms_are_refused_by_name(texts, vocab, sp_model, tmp_path):
    options = {"subword": SubwordConfig(src_subword_model=sp_model, src_subword_nbest=8, src_subword_alpha=0.3)}
    with pytest.raises(ConfigError, match="must not draw at random, but 'sentencepiece' of corpus 'x' does"):
        pack_all(texts, make_codec("lm", vocab), tmp_path, options=options, data={"transforms": ["sentencepiece"]})


class TestShards:
    def decoder(self, parts):
        return TokenDecoder("x", parts, vocab_size=1 << 20, src_vocab_size=1 << 20, num_features=2)

    @pytest.mark.parametrize("highest", [12, 40_000, 70_000])
    @pytest.mark.parametrize("kind", ["plain", "masked", "everything"])
    def test_whatever_goes_in_comes_out(self, tmp_path, highest, kind):
        draw = np.random.default_rng(highest)
        examples = [_example(draw, highest, kind) for _ in range(700)]
        writer = ShardWriter(highest)
        number = 0
        line = 0
        while number < len(examples):
            take = min(int(draw.integers(0, 4)), len(examples) - number)
            line += 1
            writer.add(line, examples[number : number + take], b"" if take else b'{"dropped": {"empty": 1}}')
            number += take
        entry = writer.write(tmp_path, 0)
        assert entry["dtype"] == ("uint16" if highest < (65536 if kind == "plain" else 32768) else "uint32")
        assert entry["masked"] == (kind != "plain")
        index = {"format": "onmt_llm-tokens", "version": 1, "parts": writer.parts, "shards": [entry]}
        (tmp_path / "index.json").write_text(json.dumps(index))
        reader = PackReader("x", tmp_path)
        reader.check()
        counts = CorpusCounts()
        records = list(iter(reader.read, None))
        out = [encoded for _, encoded in self.decoder(reader.parts)(records, counts)]
        assert counts.read == reader.count() == len(records) == entry["records"]
        assert len(out) == len(examples)
        for one, other in zip(examples, out, strict=True):
            for name in ("src", "tgt", "labels", "features", "align"):
                a, b = getattr(one, name), getattr(other, name)
                assert (a is None and b is None) or (np.array_equal(a, b) and b.dtype == np.int32), name
        # by number, and from any position
        for place in draw.integers(0, len(records), 20).tolist():
            assert reader.at(place) == records[place]
            reader.seek([place])
            assert reader.read() == records[place] and reader.tell() == [place + 1]

    def test_labels_of_other_tokens_are_refused(self):
        ids = np.arange(4, dtype=np.int32)
        with pytest.raises(DataError, match="shifted by one"):
            ShardWriter(9).add(1, [Encoded(None, ids, ids, 0)], b"")

    def test_ids_beyond_the_vocabulary_are_refused(self, tmp_path):
        record = _pack_one(tmp_path, [5, 6, 7])
        with pytest.raises(DataError, match="must be below 7, the size of the vocabulary, but one is 7"):
            list(TokenDecoder("x", ("tgt",), vocab_size=7, src_vocab_size=7)([record], CorpusCounts()))

    def test_missing_and_cut_files_are_named(self, texts, vocab, tmp_path, make_pipeline):
        folder = pack_all({"x": texts["x"]}, make_codec("lm", vocab), tmp_path)["x"]
        corpora = {"x": CorpusConfig(path_tokens=str(folder))}
        file = folder / "00001.bin"
        content = file.read_bytes()
        file.write_bytes(content[:-2])
        with pytest.raises(DataError, match=r"00001.bin has [\d,]+ bytes instead of"):
            make_pipeline(corpora)
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        make_pipeline(corpora)
        with pytest.raises(DataError, match=r"1 files of .* are not as written: 00001.bin"):
            pack.verify(folder)
        file.unlink()
        with pytest.raises(DataError, match=r"00001.bin is missing"):
            make_pipeline(corpora)

    def test_merged_shards_hold_all_examples(self, texts, vocab, tmp_path, make_pipeline):
        folders = pack_all(texts, make_codec("lm", vocab), tmp_path / "packs")
        merged = pack.merge(list(folders.values()), tmp_path / "merged")
        assert pack.verify(merged) == 3 * 7
        valid = [
            make_pipeline({"x": CorpusConfig(path_tokens=str(path))}, training=False)
            for path in (merged, *folders.values())
        ]
        whole, *parts = [list(pipeline) and pipeline.counts["x"] for pipeline in valid]
        parts[0].add(parts[1])
        assert whole == parts[0]
        with pytest.raises(DataError, match="must not exist"):
            pack.merge(list(folders.values()), tmp_path / "merged")
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match=r"Writing .*file/merged failed"):
            pack.merge(list(folders.values()), tmp_path / "file/merged")

    def test_long_documents_need_a_word_about_packing(self, texts, vocab, tmp_path, make_pipeline, monkeypatch):
        folder = pack_all({"x": texts["x"]}, make_codec("lm", vocab), tmp_path)["x"]
        corpora = {"x": CorpusConfig(path_tokens=str(folder))}
        monkeypatch.setattr("onmt_llm.data.token_shards.open._LONG", 3)
        with pytest.raises(ConfigError, match=r"'packing' must be given for .* those of corpus 'x' have \d tokens on"):
            make_pipeline(corpora)
        for batching in ({"packing": "off"}, {"packing": "wrap", "packing_length": 8}):
            assert next(iter(make_pipeline(corpora, batching=batching))).num_examples

    def test_shards_of_another_vocabulary_or_task_are_refused(self, texts, vocab, tmp_path, make_pipeline):
        folder = pack_all({"x": texts["x"]}, make_codec("lm", vocab), tmp_path)["x"]
        corpora = {"x": CorpusConfig(path_tokens=str(folder))}
        with pytest.raises(DataError, match="another vocab"):
            make_pipeline(corpora, vocab=Vocab([*vocab, "new"], SpecialTokens(pad="<blank>")))
        with pytest.raises(DataError, match="must be of pairs"):
            make_pipeline(corpora, task="seq2seq")
        with pytest.raises(ConfigError, match="neither another path nor a selection beside path_tokens"):
            make_pipeline({"x": corpora["x"].model_copy(update={"path_src": texts["x"].path_src})})


class TestForeign:
    def read(self, make_pipeline, path, **corpus):
        config = {"x": CorpusConfig(path_tokens=str(path), **corpus)}
        pipeline = make_pipeline(
            config, training=False, batching={"bucket_size": 1, "batch_size": 1, "valid_batch_size": 1}
        )
        found = [[*batch.tgt_BT[0].tolist(), *batch.labels_BT[0, -1:].tolist()] for batch in pipeline]
        return found, pipeline.counts["x"]

    @pytest.mark.parametrize("name", ["litdata_int32", "litdata_uint16"])
    def test_litdatas_documents_and_rows_are_those_that_litdata_reads(self, make_pipeline, name):
        expected = json.loads((FIXTURES / name / "expected.json").read_text(encoding="utf-8"))
        documents, counts = self.read(make_pipeline, FIXTURES / name)
        assert documents == expected["documents"] and counts.read == counts.kept == 7
        rows, counts = self.read(make_pipeline, FIXTURES / name, row_length=expected["row_length"])
        assert [row for row in rows if len(row) == 8] == expected["rows"]
        # litdata leaves out what does not fill a row; here that is an example too, unless it is a single token
        whole = sum(map(len, documents))
        assert (
            sum(map(len, rows)) == whole - counts.dropped["padding"]
            and counts.read == counts.kept + counts.dropped.total()
        )

    def lit_gpt(self, folder, tokens, code=3, dtype="<i2", name="a_0.bin"):
        folder.mkdir(exist_ok=True)
        head = b"LITPKDS" + struct.pack("<Q", 1) + struct.pack("<B", code) + struct.pack("<Q", len(tokens))
        (folder / name).write_bytes(head + np.array(tokens, dtype).tobytes())

    def test_lit_gpts_rows_lose_their_padding(self, make_pipeline, tmp_path):
        self.lit_gpt(tmp_path / "a", [4, 5, 6, 7, 8, 9, -1, -1, -1, -1, -1, -1])
        self.lit_gpt(tmp_path / "a", [10, 11, 10, 11], name="a_1.bin")
        (tmp_path / "a/a_metadata.json").write_text('{"block_size": 4}')
        found, counts = self.read(make_pipeline, tmp_path / "a")
        assert found == [[4, 5, 6, 7], [8, 9], [10, 11, 10, 11]]
        assert (counts.read, counts.kept, counts.dropped) == (4, 3, {"padding": 1})

    @pytest.mark.parametrize(("code", "dtype"), [(1, "u1"), (4, "<i4"), (5, "<i8"), (8, "<u2")])
    def test_lit_gpts_types(self, make_pipeline, tmp_path, code, dtype):
        self.lit_gpt(tmp_path / "a", [4, 5, 6, 7, 8, 9, 10], code, dtype)
        assert self.read(make_pipeline, tmp_path / "a", row_length=4)[0] == [[4, 5, 6, 7], [8, 9, 10]]

    def test_what_is_no_shard_or_damaged_is_told(self, make_pipeline, tmp_path):
        (tmp_path / "a").mkdir()
        with pytest.raises(DataError, match="holds none"):
            self.read(make_pipeline, tmp_path / "a")
        self.lit_gpt(tmp_path / "a", [4, 5, 6])
        with pytest.raises(ConfigError, match="row_length of corpus 'x' must be given"):
            self.read(make_pipeline, tmp_path / "a")
        file = tmp_path / "a/a_0.bin"
        file.write_bytes(file.read_bytes()[:-2])
        with pytest.raises(DataError, match="must hold 3 tokens, as its header says, but holds 2"):
            self.read(make_pipeline, tmp_path / "a", row_length=4)
        self.lit_gpt(tmp_path / "a", [1.5], code=6, dtype="<f4")
        with pytest.raises(DataError, match="type 6"):
            self.read(make_pipeline, tmp_path / "a", row_length=4)
        shutil.copytree(FIXTURES / "litdata_int32", tmp_path / "b")
        file = tmp_path / "b/chunk-0-1.bin"
        file.write_bytes(file.read_bytes()[:-4])
        with pytest.raises(DataError, match=r"chunk-0-1.bin is truncated"):
            self.read(make_pipeline, tmp_path / "b")


def test_the_commands(write, words, tmp_path, capsys):
    vocab = write("vocab", "".join(f"{token}\n" for token in ["<unk>", "<blank>", "<s>", "</s>", *"abcdefgh"]))
    common = f"src_vocab: {vocab}\nshare_vocab: true\ndecoder_layers: 1\nencoder_layers: 0\nhidden_size: 8\n"
    out = tmp_path / "out"
    text = f"data: {{web: {{path_src: {write('web', words(30, 1))}%s}}}}\n{common}save_data: {out}\noverwrite: true\n"
    plain, reading = write("a.yaml", text % ""), write("b.yaml", text % f", path_packed: {out / 'packed'}")
    assert main(["report", "-config", reading]) == DataError.exit_code
    assert "onmt_llm_data pack" in capsys.readouterr().err
    assert main(["pack", "-config", plain]) == 0
    (folder,) = (out / "packed").iterdir()
    found = []
    for config in (plain, reading):
        assert main(["report", "-config", config]) == 0
        found.append(json.loads((out / "report.json").read_text(encoding="utf-8"))["corpora"]["web"])
    assert {**found[0], "files": 0} == {**found[1], "files": 0}
    assert main(["sample", "-config", reading]) == 0
    assert (out / "samples.html").read_text(encoding="utf-8").count("<article") == 20
    assert main(["verify", "-shards", str(folder)]) == 0
    assert main(["merge", "-shards", str(folder), str(folder), "-output", str(tmp_path / "merged")]) == 0
    assert "12 files" not in capsys.readouterr().out and len(list((tmp_path / "merged").glob("*.bin"))) == 4


def _example(draw: np.random.Generator, highest: int, kind: str) -> Encoded:
    sequence = draw.integers(0, highest, int(draw.integers(2, 30))).astype(np.int32)
    labels = sequence[1:].copy()
    if kind != "plain":
        labels[draw.random(len(labels)) < 0.4] = IGNORED
    if kind != "everything":
        return Encoded(None, sequence[:-1], labels, 0)
    src = draw.integers(0, highest, int(draw.integers(1, 20))).astype(np.int32)
    align = draw.integers(0, 9, (int(draw.integers(0, 5)), 2)).astype(np.int32)
    features = draw.integers(0, 5, (len(src), 2)).astype(np.int32)
    encoded = Encoded(src, sequence[:-1], labels, 0, features, align)
    assert parts_of(encoded) == ("src", "features", "tgt", "align")
    return encoded


def _pack_one(folder: Path, ids: list[int]):
    writer = ShardWriter(100)
    sequence = np.array(ids, dtype=np.int32)
    writer.add(1, [Encoded(None, sequence[:-1], sequence[1:], 0)], b"")
    index = {"format": "onmt_llm-tokens", "version": 1, "parts": ["tgt"], "shards": [writer.write(folder, 0)]}
    (folder / "index.json").write_text(json.dumps(index))
    return PackReader("x", folder).read()
