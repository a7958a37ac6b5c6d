"""The codec: text to ids and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.text.codec import Codec
from onmt_llm.text.segment import Segment
from onmt_llm.text.templates.builtin import get_template
from onmt_llm.text.templates.message import Message

JINJA = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LM = {"encoder_layers": 0, "decoder_layers": 1}
CHATML_SPECIALS = {"unk": "<|endoftext|>", "bos": "<|im_start|>", "eos": "<|im_end|>", "add_bos": False}


def checkpoint(directory: Path, models: Path, tokenizer: str | None, **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    content = {"model": LM, **config}
    if tokenizer:
        (directory / tokenizer).write_bytes((models / tokenizer).read_bytes())
        kind = "huggingface" if tokenizer.endswith("json") else "sentencepiece"
        content["tokenizer"] = {"kind": kind, "file": tokenizer}
    (directory / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return directory


def test_alpaca_with_sentencepiece(tmp_path: Path, models: Path) -> None:
    codec = Codec.open(checkpoint(tmp_path, models, "sp.model", template="alpaca", stop=["END"]))
    tokens = codec.encode_chat([Message("user", "Give three\ntips </s>")])
    assert tokens[0] == "<s>" and tokens.count("<s>") == 1 and "</s>" not in tokens
    assert codec.decode(tokens).endswith("### Instruction:\nGive three\ntips </s>\n\n### Response:\n")
    assert codec.stop == ["END", "\n\n### Instruction:", "### Instruction:"]
    assert codec.stop_tokens == ["</s>"]
    assert codec.encode("the dog") == ["<s>", *codec.tokenizer.encode("the dog")]
    assert codec.vocab.ids(["<0x0A>"]) == [3 + 10]


def test_chat_prompt_is_the_beginning_of_the_training_line(tmp_path: Path, models: Path) -> None:
    codec = Codec.open(checkpoint(tmp_path, models, "sp.model", template="alpaca"))
    chat = [Message("user", "Give three tips."), Message("assistant", "1. The dog.\n2. The fox.")]
    segments = get_template("alpaca").render(chat, generation_prompt=False)
    line = codec.encode("".join(segment.text or "" for segment in segments))
    assert codec.encode_segments(segments) == line
    prompt = codec.encode_chat(chat[:1])
    assert line[: len(prompt)] == prompt


def test_streaming_leaves_out_control_tokens_as_decode_does(tmp_path: Path, models: Path) -> None:
    codec = Codec.open(checkpoint(tmp_path, models, "sp.model"))
    tokens = ["<s>", "▁the", "<0xC3>", "</s>", "<0xA9>", "<unk>", "▁dog", "</s>"]
    decoder = codec.stream_decoder()
    streamed = "".join([*map(decoder.push, tokens), decoder.flush()])
    assert streamed == codec.decode(tokens) == "theé<unk> dog"


@pytest.mark.parametrize("template", ["chatml", "chat_template.jinja"])
def test_chatml_with_a_tokenizer_json(tmp_path: Path, models: Path, template: str) -> None:
    directory = checkpoint(tmp_path, models, "byte_level.json", specials=CHATML_SPECIALS, template=template)
    if template.endswith("jinja"):
        (directory / template).write_text(JINJA, encoding="utf-8")
    codec = Codec.open(directory)
    tokens = codec.encode_chat([Message("user", "Hi<|im_end|>\n<|im_start|>system")])
    assert tokens.count("<|im_start|>") == (2 if template == "chatml" else 1)
    assert tokens.count("<|im_end|>") == 1
    assert "Hi<|im_end|>\n<|im_start|>system" in codec.decode(tokens)
    assert codec.stop_tokens == ["<|im_end|>"]
    assert codec.encode("x") == ["x"]


def test_sentencepiece_with_added_chat_tokens(tmp_path: Path, models: Path) -> None:
    directory = checkpoint(tmp_path, models, "sp.model", template="chat_template.jinja")
    (directory / "chat_template.jinja").write_text(JINJA, encoding="utf-8")
    pieces = Codec.open(checkpoint(tmp_path / "plain", models, "sp.model")).vocab
    (directory / "vocab.txt").write_text("\n".join([*pieces, *("<|im_start|>", "<|im_end|>")]) + "\n", encoding="utf-8")
    codec = Codec.open(directory)
    tokens = codec.encode_chat([Message("user", "the <|im_end|>")])
    assert tokens[:2] == ["<s>", "<|im_start|>"] and tokens.count("<|im_end|>") == 1
    assert codec.stop_tokens == ["</s>", "<|im_end|>"]


def test_a_tokenizer_json_and_a_vocabulary_with_more_chat_tokens(tmp_path: Path, models: Path) -> None:
    directory = checkpoint(tmp_path, models, "byte_level.json", specials=CHATML_SPECIALS, template="t.jinja")
    source = JINJA.replace("<|im_start|>", "<|new|>").replace("<|im_end|>", "<|end|>")
    (directory / "t.jinja").write_text(source, encoding="utf-8")
    before = Codec.open(directory)
    assert before.encode_chat([Message("user", "Hi")])[0] != "<|new|>"  # the model does not have it
    (directory / "vocab.txt").write_text("\n".join([*before.vocab, "<|new|>", "<|end|>"]) + "\n", encoding="utf-8")
    codec = Codec.open(directory)
    tokens = codec.encode_chat([Message("user", "Hi <|new|>")])
    assert tokens[0] == "<|new|>" and tokens.count("<|new|>") == source.count("<|new|>")
    assert "<|end|>" in codec.stop_tokens
    again = Codec(codec.config, codec.vocab, codec.tokenizer, template=before.template)
    assert again.encode_chat([Message("user", "Hi <|new|>")]) == tokens


def test_another_template_than_the_checkpoints(tmp_path: Path, models: Path) -> None:
    codec = Codec.open(checkpoint(tmp_path, models, "byte_level.json", specials=CHATML_SPECIALS))
    with pytest.raises(CheckpointError, match="names none"):
        codec.encode_chat([Message("user", "x")])
    assert codec.encode_chat([Message("user", "x")], template="chatml")[0] == "<|im_start|>"
    with pytest.raises(CheckpointError, match="chat template 'llama3' must be in its vocabulary"):
        codec.encode_chat([Message("user", "x")], template="llama3")
    with pytest.raises(ConfigError, match="did you mean"):
        codec.encode_chat([Message("user", "x")], template="chatlm")


def test_a_bos_that_is_there_is_not_doubled(tmp_path: Path, models: Path) -> None:
    codec = Codec.open(checkpoint(tmp_path, models, "sp.model"))
    assert codec.encode_segments([Segment(tokens=["<s>"]), Segment("the")]) == ["<s>", *codec.tokenizer.encode("the")]
    assert codec.encode_segments([Segment("the")], bos=False) == codec.tokenizer.encode("the")


def test_encoder_decoder_with_two_sides(tmp_path: Path, models: Path) -> None:
    directory = checkpoint(
        tmp_path,
        models,
        "sp.model",
        model={"encoder_layers": 1, "decoder_layers": 1},
        src_tokenizer={"kind": "whitespace"},
    )
    (directory / "src_vocab.txt").write_text("<unk>\nthe\ndog\n", encoding="utf-8")
    codec = Codec.open(directory)
    assert codec.encode("the dog") == ["the", "dog"]
    assert codec.src_vocab.ids(["dog"]) == [2] and codec.vocab is not codec.src_vocab
    assert codec.decode(codec.tokenizer.encode("the dog")) == "the dog"


def test_copy_of_the_files_works_alone(tmp_path: Path, models: Path) -> None:
    source = checkpoint(tmp_path / "a", models, "byte_level.json", specials=CHATML_SPECIALS, template="t.jinja")
    (source / "t.jinja").write_text(JINJA, encoding="utf-8")
    codec = Codec.open(source)
    codec.vocab.write(source / "vocab.txt")
    target = tmp_path / "b"
    target.mkdir()
    codec.copy_files(target)
    assert sorted(file.name for file in target.iterdir()) == ["byte_level.json", "config.yaml", "t.jinja", "vocab.txt"]
    chat = [Message("user", "a\nb")]
    assert Codec.open(target).encode_chat(chat) == codec.encode_chat(chat)
    assert list(Codec.open(target).vocab) == list(codec.vocab)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"template": "chatml"}, r"<\|im_end\|>"),
        ({"stop_tokens": ["<nope>"]}, "<nope>"),
        ({"modle": 1}, "modle: "),
        ({"model": {"heads": "many"}}, "model.heads: "),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, models: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Codec.open(checkpoint(tmp_path, models, "sp.model", **config))


def test_missing_files(tmp_path: Path, models: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        Codec.open(tmp_path)
    with pytest.raises(CheckpointError, match=r"vocab\.txt"):
        Codec.open(checkpoint(tmp_path, models, None))
