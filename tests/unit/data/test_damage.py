"""Damaged token shards and line indexes are refused or rebuilt: no silent difference, no traceback."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.data import pack
from onmt_llm.data.readers import IndexCache, Record, ShuffledReader, open_reader
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.data.token_shards import checked_array
from onmt_llm.data.token_shards import shard as packed
from onmt_llm.data.token_shards.litdata import open_token_reader
from onmt_llm.data.token_shards.records import TokenDecoder
from onmt_llm.data.token_shards.shard import PackReader, read_index, write_index
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.text.vocab import Vocab
from tiny_codecs import make_codec, make_spec

FIXTURES = Path(__file__).parents[2] / "data/tokens"
BLOCK = 1 << 10


@pytest.fixture
def shards(
    write: Callable[[str, str], str], words: Callable[[int, int], str], vocab: Vocab, tmp_path: Path, monkeypatch
) -> Path:
    """Three shards, the files of several blocks each; empty lines are dropped."""
    monkeypatch.setattr(pack, "SHARD_RECORDS", 256)
    monkeypatch.setattr(checked_array, "BLOCK", BLOCK)
    text = words(300, 1) + "\n\n" + words(300, 2)
    corpora = {"x": CorpusConfig(path_src=write("x", text))}
    data = DataConfig(skip_empty_level="silent")
    (folder,) = pack.pack(make_spec(corpora, make_codec("lm", vocab), data), tmp_path / "packs").values()
    assert (folder / "00000.bin").stat().st_size > 2 * BLOCK
    return folder


def content(path: Path, row_length: int | None = None) -> list[tuple[int, tuple[bytes, ...]]]:
    """All that a run would see of shards."""
    reader = open_token_reader("x", path, row_length)
    reader.check()
    return [(record.line, record.parts) for record in iter(reader.read, None)]


def as_version_1(folder: Path) -> None:
    index = read_index(folder)
    for shard in index["shards"]:
        del shard["checks"]
    (folder / "index.json").write_text(json.dumps({**index, "version": 1}), encoding="utf-8")


def flip(file: Path, draw: random.Random) -> tuple[bytes, int]:
    """Change one byte of a file; returns what it was, and where."""
    before = file.read_bytes()
    place, after = draw.randrange(len(before)), bytearray(before)
    after[place] ^= draw.randrange(1, 256)
    file.write_bytes(after)
    return before, place


@pytest.mark.parametrize("version", [1, 2])
def test_a_changed_byte_of_shards_is_refused_by_name_or_makes_no_difference(shards: Path, version: int) -> None:
    if version == 1:
        as_version_1(shards)
    expected, draw, noticed = content(shards), random.Random(version), 0
    files = sorted(shards.iterdir())
    for turn in range(8 * len(files)):
        file = files[turn % len(files)]
        before, place = flip(file, draw)
        try:
            # what an index of version 1 says of dropped examples has no checksum
            assert content(shards) == expected or (version == 1 and file.name == "index.json"), (file.name, place)
        except DataError as error:
            noticed += 1
            assert file.name in error.message or "holds none" in error.message
        file.write_bytes(before)
    assert noticed > turn // 2
    assert content(shards) == expected


def test_opening_reads_nothing_and_reading_checks_what_it_reads(shards: Path) -> None:
    expected = content(shards)
    file = shards / "00001.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    reader = PackReader("x", shards)
    reader.check()
    for number in (0, 255, 256, 400):
        record = reader.at(number)
        assert (record.line, record.parts) == expected[number]
    with pytest.raises(DataError, match=r"00001\.bin has changed between byte [\d,]+ and byte [\d,]+"):
        reader.at(511)


def test_many_shards_need_few_open_files(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = content(shards)
    monkeypatch.setattr(packed, "_MOST_OPEN", 1)
    reader = PackReader("x", shards)
    for number in (0, 300, 1, 599, 301):
        assert reader.at(number).parts == expected[number][1]
    assert len(reader._open) == 1


@pytest.mark.parametrize("name", ["00000.rec.npy", "00000.idx.npy"])
@pytest.mark.parametrize("kind", ["objects", "short", "nonsense", "empty"])
@pytest.mark.parametrize("version", [1, 2])
def test_an_array_that_is_none_is_one_sentence(shards: Path, name: str, kind: str, version: int) -> None:
    if version == 1:
        as_version_1(shards)
    file = shards / name
    if kind == "objects":
        np.save(file, np.array([{"a": 1}] * 9, dtype=object), allow_pickle=True)
    else:
        whole = file.read_bytes()
        file.write_bytes({"short": whole[:200], "nonsense": whole.replace(b"{", b"(", 1), "empty": b""}[kind])
    with pytest.raises(DataError, match=name):
        content(shards)


def test_what_an_index_counts_must_add_up(shards: Path) -> None:
    for key, change in (("read", 1), ("kept", -1), ("made", 3)):
        index = read_index(shards)
        index["counts"][key] += change
        write_index(shards, index)
        with pytest.raises(DataError, match=r"index\.json is not: .*(kept or dropped|shards hold)"):
            read_index(shards)
        index["counts"][key] -= change
        write_index(shards, index)
    assert content(shards)


def test_merged_shards_of_either_version_are_checked(shards: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(shards, old)
    as_version_1(old)
    merged = pack.merge([old, shards], tmp_path / "merged")
    assert len(content(merged)) == 2 * len(content(shards))
    for name in ("00000.bin", "00005.rec.npy"):
        whole = (merged / name).read_bytes()
        (merged / name).unlink()  # it is linked to the others
        (merged / name).write_bytes(bytes([whole[0] ^ 4]) + whole[1:])
        with pytest.raises(DataError, match=name):
            content(merged)
        (merged / name).write_bytes(whole)


def test_preference_data_are_not_packed(shards: Path, vocab: Vocab, tmp_path: Path, make_pipeline) -> None:
    with pytest.raises(ConfigError, match="objective must be sft"):
        pack.pack(make_spec({}, make_codec("lm", vocab), DataConfig(objective="dpo")), tmp_path)
    with pytest.raises(ConfigError, match="must be JSON objects"):
        make_pipeline({"x": CorpusConfig(path_tokens=str(shards))}, {"objective": "dpo"})


def ids(records: list[tuple[int, tuple[bytes, ...]]]) -> list[list[int]]:
    decoder = TokenDecoder("x", ("tgt",), vocab_size=1000, src_vocab_size=1000)
    found = decoder([Record(line, parts, (0,) * len(parts), (Path(),)) for line, parts in records], CorpusCounts())
    return [encoded.tgt.tolist() for _, encoded in found]


def lit_gpt(folder: Path) -> Path:
    folder.mkdir()
    tokens = np.arange(4, 34, dtype="<i2").tobytes()
    for name in ("a_0.bin", "a_1.bin"):
        head = b"LITPKDS" + (1).to_bytes(8, "little") + b"\x03" + (30).to_bytes(8, "little")
        (folder / name).write_bytes(head + tokens)
    (folder / "a_metadata.json").write_text('{"block_size": 10}')
    return folder


@pytest.mark.parametrize("kind", ["litdata_int32", "litdata_uint16", "lit_gpt"])
def test_a_changed_byte_of_other_programs_shards_is_no_traceback(kind: str, tmp_path: Path) -> None:
    """Their tokens have no checksums, but their headers must say what is there."""
    folder = tmp_path / "copy"
    lit_gpt(folder) if kind == "lit_gpt" else shutil.copytree(FIXTURES / kind, folder)
    expected, draw = ids(content(folder)), random.Random(kind)
    headers = 24 if kind == "lit_gpt" else 8
    files = [file for file in sorted(folder.iterdir()) if file.name != "expected.json"]
    for turn in range(40 * len(files)):
        file = files[turn % len(files)]
        before, place = flip(file, draw)
        with contextlib.suppress(DataError, ConfigError):
            assert ids(content(folder)) == expected or file.suffix != ".bin" or place >= headers, (file.name, place)
        file.write_bytes(before)


@pytest.mark.parametrize("file", ["index.json", "a_metadata.json"])
@pytest.mark.parametrize("text", ["[" * 300_000, "\xff", '{"chunks": 3}', '{"chunks": [{}], "config": []}', "{}"])
def test_json_that_is_nonsense_is_one_sentence(file: str, text: str, tmp_path: Path) -> None:
    folder = lit_gpt(tmp_path / "a")
    (folder / file).write_bytes(text.encode("latin-1"))
    with pytest.raises((DataError, ConfigError)):
        content(folder)


def test_numbers_that_are_no_tokens_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for wrong in (-2, 1 << 31, 1 << 40):
        head = b"LITPKDS" + (1).to_bytes(8, "little") + b"\x05" + (4).to_bytes(8, "little")
        (folder / "a.bin").write_bytes(head + np.array([4, 5, wrong, 6], "<i8").tobytes())
        with pytest.raises(DataError, match=f"but .*a.bin holds {wrong:,}"):
            content(folder, 4)


CORPORA = {
    "lines": {"path_src": "x.txt"},
    "documents": {"path_txt": "x.txt"},
    "rows": {"path_table": "x.csv"},
    "array": {"path_json": "x.json"},
}


@pytest.fixture(params=CORPORA)
def indexed(request, write: Callable[[str, str], str], words: Callable[[int, int], str], tmp_path: Path):
    """Reads a shuffled corpus through the index in a folder; and the folder."""
    lines = words(60, 1).splitlines()
    write("x.txt", "".join(f"{line}\n\n" if number % 9 == 8 else f"{line}\n" for number, line in enumerate(lines)))
    write("x.csv", "text\n" + "".join(f'"{line}\nb"\n' for line in lines))
    write("x.json", json.dumps([{"text": line} for line in lines], indent=1))
    config = {key: str(tmp_path / name) for key, name in CORPORA[request.param].items()}

    def read() -> list[Record]:
        cache = IndexCache(tmp_path / "idx")
        reader = ShuffledReader("x", open_reader("x", CorpusConfig(**config), cache=cache), seed=1)
        reader.check()
        return list(iter(reader.read, None))

    return read, tmp_path / "idx"


def test_an_index_that_is_not_as_it_was_written_is_made_anew(indexed, caplog: pytest.LogCaptureFixture) -> None:
    read, folder = indexed
    expected, draw = read(), random.Random(1)
    assert len(expected) > 6 and read() == expected and not caplog.records
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for turn in range(25):
            caplog.clear()
            if turn < 20:
                flip(file, draw)
            else:  # as it is after a loss of power, and as an earlier version wrote it
                file.write_bytes([b"", whole[:-1], whole[:50], bytes(len(whole)), whole[40:-32]][turn - 20])
            assert read() == expected
            assert [record.message.endswith("rebuilding it.") for record in caplog.records] == [True]
            assert file.read_bytes() == whole
    assert not list(folder.glob(".*"))


def test_an_index_of_another_file_is_made_anew(indexed, caplog: pytest.LogCaptureFixture) -> None:
    read, folder = indexed
    expected = read()
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:24] + bytes(16) + file.read_bytes()[40:])
    assert read() == expected and caplog.records


def test_an_index_that_goes_while_it_is_used_is_one_sentence(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    cache = IndexCache(tmp_path / "idx")
    lines = cache.line_index(Path(write("x", "a\nb\n")))
    (file,) = (tmp_path / "idx").iterdir()
    file.unlink()
    with pytest.raises(DataError, match="must not change while it is used"):
        lines.span(1)
