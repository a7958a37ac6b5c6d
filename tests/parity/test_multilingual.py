"""Tokenisers, languages and translations of NLLB, M2M100, mBART and Marian models, against `transformers`."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import onmt_llm
from onmt_llm.checkpoint.convert import checkpoint_config, convert, open_imported, write_tokenizer
from onmt_llm.checkpoint.formats import language_codes
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.store import CheckpointWriter
from onmt_llm.errors import ConfigError
from onmt_llm.releasing import release
from onmt_llm.text.codec import Codec

transformers = pytest.importorskip("transformers")

SCRIPTS = {
    **{"Latin": (0x61, 0x7A), "Latin-1": (0xE0, 0xF6), "Greek": (0x3B1, 0x3C9), "Cyrillic": (0x430, 0x44F)},
    **{"Hebrew": (0x5D0, 0x5EA), "Arabic": (0x627, 0x64A), "Devanagari": (0x905, 0x939), "Thai": (0xE01, 0xE2E)},
    **{"Hangul": (0xAC00, 0xAC40), "Hiragana": (0x3042, 0x3093), "Han": (0x4E00, 0x4E40)},
}
ODD = ["2024", "3.14", "ﬁne", "Ａ１", "½", "“q”", "…", "a  b", " x ", "😀", "é", "Ⅳ"]
NLLB = ["eng_Latn", "fra_Latn", "deu_Latn"]
LANGUAGES = {
    "NllbTokenizer": ("deu_Latn", "fra_Latn"),
    "MBart50Tokenizer": ("de_DE", "fr_XX"),
    "MBartTokenizer": ("de_DE", "fr_XX"),
    "M2M100Tokenizer": ("de", "fr"),
    "MarianTokenizer": ("", "fra"),
    "MarianTokenizer, two languages": ("", ""),
    "MarianTokenizer, two vocabularies": ("", ""),
    "MarianTokenizer, two vocabularies, another output layer": ("", ""),
}
SHAPE = {
    **{"d_model": 32, "max_position_embeddings": 64, "encoder_layers": 1, "decoder_layers": 2},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
}


def lines(count: int, seed: int) -> list[str]:
    """Lines of made-up words in eleven scripts."""
    rng = random.Random(7)
    words = [
        ["".join(chr(rng.randint(*span)) for _ in range(rng.randint(1, 6))) for _ in range(40)]
        for span in SCRIPTS.values()
    ]
    rng = random.Random(seed)
    found = []
    for number in range(count):
        line = rng.choices(words[number % len(words)], k=rng.randint(1, 9))
        line += rng.choices(ODD, k=rng.random() < 0.2)
        found.append(" ".join(line) + rng.choice([".", "!", "?", "", "。", " "]))
    return found


def train(file: Path, size: int, kind: str) -> list[str]:
    """Train a SentencePiece model; returns its pieces without <unk>, <s> and </s>."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines(1500, 1)),
        model_writer=model,
        vocab_size=size,
        model_type=kind,
        character_coverage=0.995,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    file.write_bytes(model.getvalue())
    loaded = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [loaded.id_to_piece(number) for number in range(3, len(loaded))]


def write_files(directory: Path, name: str) -> Any:
    """The files of a tokeniser as on the hub; returns that of transformers."""
    kind, _, two = name.partition(",")
    directory.mkdir()
    if kind == "MarianTokenizer":
        sides = train(directory / "source.spm", 620, "unigram"), train(directory / "target.spm", 640, "bpe")
        codes = [] if two else [">>fra<<", ">>deu_Latn<<"]
        separate = "vocabularies" in two
        tables = zip(("vocab", "target_vocab"), sides, strict=True) if separate else [("vocab", sides[0] + sides[1])]
        for file, pieces in tables:
            # some pieces have no row; transformers gives both sides the id of the source's padding
            vocab = ["</s>", "<unk>", *codes, *dict.fromkeys(pieces)][: 590 if separate else -9]
            write_json(directory / f"{file}.json", {token: number for number, token in enumerate([*vocab, "<pad>"])})
        write_json(directory / "tokenizer_config.json", {"tokenizer_class": kind, "separate_vocabs": separate})
        return transformers.MarianTokenizer.from_pretrained(directory)
    pieces = train(directory / "sentencepiece.bpe.model", 640, "bpe" if kind == "NllbTokenizer" else "unigram")
    src, tgt = LANGUAGES[name]
    if kind == "M2M100Tokenizer":
        vocab = ["<s>", "<pad>", "</s>", "<unk>", *reversed(pieces)]
        write_json(directory / "vocab.json", {token: number for number, token in enumerate(vocab)})
        return transformers.M2M100Tokenizer.from_pretrained(directory, src_lang=src, tgt_lang=tgt)
    stated = {"tokenizer_class": kind, **({"additional_special_tokens": NLLB} if kind == "NllbTokenizer" else {})}
    write_json(directory / "tokenizer_config.json", stated)
    tokenizer = getattr(transformers, kind).from_pretrained(directory, src_lang=src, tgt_lang=tgt)
    tokenizer.save_pretrained(directory)
    # transformers states a source language even where nobody has chosen one
    saved = json.loads((directory / "tokenizer_config.json").read_text())
    write_json(directory / "tokenizer_config.json", {**saved, "tgt_lang": None})
    return tokenizer


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def save_model(directory: Path, name: str, tokenizer: Any) -> Any:
    """A random model for a tokeniser, of which some answers end."""
    torch.manual_seed(0)
    rows = max(len(tokenizer), *(tokenizer.convert_tokens_to_ids(["__zu__", "</s>"]))) + 9
    if name.startswith("Marian"):
        pad = tokenizer.pad_token_id
        separate = tokenizer.separate_vocabs
        rows = len(tokenizer.target_encoder) if separate else pad + 1
        ids = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": 0, "forced_eos_token_id": None}
        settings = {"vocab_size": pad + 1, "decoder_vocab_size": rows, "bad_words_ids": [[pad]], **ids}
        settings |= {"share_encoder_decoder_embeddings": not separate, "tie_word_embeddings": "output" not in name}
        kind = "marian"
    else:
        kind = "mbart" if name.startswith("MBart") else "m2m_100"
        ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "forced_eos_token_id": None}
        settings = {"vocab_size": rows, **ids}
        settings["decoder_start_token_id"] = 2
        if name == "MBartTokenizer":
            settings["decoder_start_token_id"] = tokenizer.convert_tokens_to_ids("fr_XX")
    config = transformers.AutoConfig.for_model(kind, **{**SHAPE, **settings})
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval().float()
    with torch.no_grad():
        for parameter in [one for one in model.parameters() if one.requires_grad]:
            parameter.add_(torch.randn_like(parameter) * 0.4)
        model.get_output_embeddings().weight[config.eos_token_id] *= 1.8  # so that some answers end
    model.generation_config = transformers.GenerationConfig.from_model_config(config)
    if kind == "marian":
        model.generation_config.bad_words_ids = [[pad]]
    model.save_pretrained(directory)
    return model


QUICK = {"NllbTokenizer", "MarianTokenizer, two vocabularies"}


@pytest.fixture(
    scope="module",
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LANGUAGES],
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any, Any]:
    directory = tmp_path_factory.mktemp("model") / "hf"
    tokenizer = write_files(directory, request.param)
    return request.param, directory, tokenizer, save_model(directory, request.param, tokenizer)


def codec_of(directory: Path, output: Path) -> Codec:
    """The codec of a model, without its weights."""
    imported = open_imported(directory)
    with CheckpointWriter(output, checkpoint_config(imported, None)) as writer:
        write_tokenizer(writer, imported.tokenizer)
    return Codec.open(output)


def check_texts(tokenizer: Any, codec: Codec, code: str = "") -> None:
    """Ids of sources, targets and texts of ids, on a thousand lines."""
    texts = lines(1000, 5)
    start = codec.vocab.ids(codec.start_tokens)
    unknown = 0
    for text in texts:
        ids = tokenizer(code + text)["input_ids"]
        assert codec.src_vocab.ids(codec.encode(text)) == ids, text
        own = codec.vocab.ids(codec.tokenizer.encode(text))
        target = tokenizer(text_target=text)["input_ids"]
        assert [*own, tokenizer.eos_token_id] == [one for one in target if one not in start[-1:]] or not own
        if tokenizer.unk_token_id in target:  # transformers leaves it out, we write <unk>
            unknown += 1
            continue
        assert codec.decode(codec.vocab.tokens(own)) == tokenizer.decode(own, skip_special_tokens=True), text
    assert unknown < 500


def test_ids_and_texts(folder: tuple[str, Path, Any, Any], tmp_path: Path) -> None:
    name, directory, tokenizer, _ = folder
    src, tgt = LANGUAGES[name]
    codec = codec_of(directory, tmp_path / "ours").for_languages(src, tgt)
    check_texts(tokenizer, codec, ">>fra<< " if name == "MarianTokenizer" else "")


def translations(model: Any, tokenizer: Any, texts: list[str], beams: int, code: str, tgt: str) -> list[list[int]]:
    """Ids of transformers' answers to each line alone, without what the decoder is given and without the end."""
    forced = {} if not tgt or code else {"forced_bos_token_id": tokenizer.convert_tokens_to_ids(tgt)}
    if model.config.decoder_start_token_id == forced.get("forced_bos_token_id"):
        forced = {}
    found = []
    for text in texts:
        inputs = tokenizer(code + text, return_tensors="pt")
        ids = model.generate(
            **inputs, **forced, num_beams=beams, max_new_tokens=12 + len(forced), length_penalty=0.0, do_sample=False
        )[0].tolist()
        answer = ids[1 + len(forced) :]
        found.append(answer[: answer.index(eos)] if (eos := model.config.eos_token_id) in answer else answer)
    return found


def test_translations(folder: tuple[str, Path, Any, Any], tmp_path: Path) -> None:
    """Greedy and with a beam of four, by both engines, between other languages than the model's default."""
    name, directory, tokenizer, model = folder
    src, tgt = LANGUAGES[name]
    convert(directory, tmp_path / "ours")
    report = release(tmp_path / "ours", tmp_path / "ct2", text="\n".join(lines(20, 3)))
    assert report["verdict"] == "pass"
    texts = [line for line in lines(60, 9) if line.strip()][:30]
    code, token = (">>fra<< " if name == "MarianTokenizer" else ""), (f"__{tgt}__" if name.startswith("M2M") else tgt)
    for beams in (1, 4):
        expected = translations(model, tokenizer, texts, beams, code, token)
        assert len(set(map(tuple, expected))) > 6
        for path in (tmp_path / "ours", tmp_path / "ct2"):
            # with forced tokens, CTranslate2's beam search leaves out an answer without any other token
            skips = beams > 1 and path.name == "ct2"
            engine = onmt_llm.open_engine(path, device="cpu", src_lang=src, tgt_lang=tgt)
            options = {"beam_size": beams, "max_length": 12, "max_length_ratio": 0, "length_penalty": "none"}
            found = engine.generate(texts, **options)
            ids = [engine.codec.vocab.ids(best.tokens) for best, *_ in found]
            differing = [pair for pair in zip(ids, expected, strict=True) if pair[0] != pair[1]]
            assert not [pair for pair in differing if pair[1] or not skips] and len(differing) < 10, (path, beams)


PUBLISHED = {
    "NLLB": (256_001, {"ace_Arab": 256_001, "eng_Latn": 256_047, "fra_Latn": 256_057, "zul_Latn": 256_202}),
    "MBART": (250_001, {"ar_AR": 250_001, "en_XX": 250_004, "ro_RO": 250_020, "zh_CN": 250_025}),
    "MBART_50": (250_001, {"en_XX": 250_004, "af_ZA": 250_026, "fr_XX": 250_008, "sl_SI": 250_052}),
    "M2M_100": (128_004, {"af": 128_004, "en": 128_022, "fr": 128_028, "zu": 128_103}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_languages_have_the_ids_of_the_published_models(name: str) -> None:
    first, ids = PUBLISHED[name]
    codes = getattr(language_codes, f"{name}_LANGUAGES")
    assert {code: first + codes.index(code) for code in ids} == ids and len(set(codes)) == len(codes)


@pytest.mark.parametrize("name", ["NllbTokenizer", "MBart50Tokenizer", "MBartTokenizer"])
def test_ids_of_sentencepiece_files(name: str, tmp_path: Path) -> None:
    """fairseq's ids: every piece moves by one, then come languages and <mask>; the model's kind says so."""
    import sentencepiece

    write_files(tmp_path / "hf", name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "hf" / file).unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "hf/sentencepiece.bpe.model"))
    codes = {
        "Nllb": language_codes.NLLB_LANGUAGES,
        "MBart50": language_codes.MBART_50_LANGUAGES,
        "MBart": language_codes.MBART_LANGUAGES,
    }
    known = codes[name.removesuffix("Tokenizer")]
    src, tgt = LANGUAGES[name]
    places = {code: len(model) + 1 + known.index(code) for code in (src, tgt)}
    settings = {"vocab_size": len(model) + 2 + len(known), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    start = places[tgt] if name == "MBartTokenizer" else 2
    kind = "m2m_100" if name == "NllbTokenizer" else "mbart"
    config = transformers.AutoConfig.for_model(kind, **{**SHAPE, **settings, "decoder_start_token_id": start})
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "hf")
    codec = codec_of(tmp_path / "hf", tmp_path / "ours").for_languages(src, tgt)
    for text in lines(300, 5):
        pieces = [number + 1 if number else 3 for number in model.encode(text)]
        sides = ([], [2, places[src]]) if name == "MBartTokenizer" else ([places[src]], [2])
        assert codec.src_vocab.ids(codec.encode(text)) == [*sides[0], *pieces, *sides[1]]
    assert codec.vocab.ids(codec.start_tokens) == ([start] if name == "MBartTokenizer" else [2, places[tgt]])
    assert codec.vocab.ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert codec.vocab[len(model) + 1 + len(known)] == "<mask>"


def test_languages_are_asked_for_by_name(folder: tuple[str, Path, Any, Any], tmp_path: Path) -> None:
    name, directory, _, _ = folder
    convert(directory, tmp_path / "ours")
    engine = onmt_llm.open_engine(tmp_path / "ours", device="cpu", max_length=3)
    src, tgt = LANGUAGES[name]
    if not tgt:
        assert engine.translate(["a"]) == engine.translate(["a"], src_lang="any", tgt_lang="any")
        return
    if name != "MBartTokenizer":  # its decoder_start_token_id is the default
        with pytest.raises(ConfigError, match="tgt_lang must be given"):
            engine.translate(["a"], src_lang=src)
    if src:
        with pytest.raises(ConfigError, match="src_lang must be given"):
            engine.translate(["a"], tgt_lang=tgt)
    with pytest.raises(ConfigError, match=rf"tgt_lang must be one of .* but is '{tgt}x'") as error:
        engine.translate(["a"], src_lang=src, tgt_lang=f"{tgt}x")
    assert tgt in str(error.value.hint)
    assert engine.translate(["a"], src_lang=src, tgt_lang=tgt)


def test_back_to_transformers(folder: tuple[str, Path, Any, Any], tmp_path: Path) -> None:
    """Files of the tokeniser, languages and what the decoder is given."""
    name, directory, tokenizer, model = folder
    src, tgt = LANGUAGES[name]
    convert(directory, tmp_path / "ours")
    export_hf(tmp_path / "ours", tmp_path / "back")
    languages = {"src_lang": src, "tgt_lang": tgt} if src else {}
    back = getattr(transformers, name.partition(",")[0]).from_pretrained(tmp_path / "back", **languages)
    for text in lines(200, 8):
        assert back(text)["input_ids"] == tokenizer(text)["input_ids"]
        target = tokenizer(text_target=text)["input_ids"]
        assert back(text_target=text)["input_ids"] == target
        assert back.decode(target, skip_special_tokens=True) == tokenizer.decode(target, skip_special_tokens=True)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "back")
    for key in ("decoder_start_token_id", "eos_token_id", "pad_token_id", "forced_bos_token_id"):
        assert getattr(config, key, None) == getattr(model.config, key, None), key
    first, second = (codec_of(path, tmp_path / f"codec {path.name}").config for path in (directory, tmp_path / "back"))
    assert first.specials == second.specials.model_copy(update={"add_bos": first.specials.add_bos})
    for key in ("sequences", "languages", "banned_tokens", "tokenizer", "src_tokenizer"):
        assert getattr(first, key) == getattr(second, key), key
