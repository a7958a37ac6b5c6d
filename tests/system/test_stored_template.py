"""A model that is trained on conversations answers in the layout that they were trained in, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import onmt_llm
import tiny
from onmt_llm.checkpoint.merge import merge
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.data.corpus import Corpus
from onmt_llm.data.example import IGNORED
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.text.codec import Codec

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]
RUN: dict[str, Any] = {
    "transforms": ["huggingface_tokenize"],
    "batch_size": 2,
    "bucket_size": 4,
    "train_steps": 2,
    "save_checkpoint_steps": 2,
    "progress": "none",
    "seed": 1,
}
LORA: dict[str, Any] = {"lora_layers": ["q_proj", "v_proj"], "lora_rank": 2, "lora_alpha": 4}


def prompt_of_training(config: dict[str, Any], codec: Codec) -> list[str]:
    """The tokens before the first trained one, in the run's own example."""
    options = onmt_llm.load_config(config).corpora
    corpus = Corpus("chats", PipelineSpec(options.data, options, codec))
    record = corpus.reader.read()
    assert record is not None
    counts = CorpusCounts()
    (example,) = corpus.examples([record], counts)
    encoded = corpus.encode(example, counts)
    assert encoded is not None
    answer = next(place for place, label in enumerate(encoded.labels) if label != IGNORED)
    return [codec.vocab[id_] for id_ in encoded.tgt[: answer + 1]]


@pytest.mark.parametrize("corpus", [{}, {"template": "llama2"}], ids=["default", "named"])
def test_the_template_of_the_corpus_goes_wherever_the_model_goes(tmp_path: Path, corpus: dict[str, str]) -> None:
    base = tiny.write_chat_model(tmp_path / "base", template=None)
    chats = tmp_path / "chats.jsonl"
    chats.write_text(f"{json.dumps({'messages': CHAT})}\n" * 4)
    data = {"chats": {"path_jsonl": str(chats), **corpus}}
    config = {**RUN, **LORA, "data": data, "train_from": str(base), "save_model": str(tmp_path / "run" / "m")}
    asked = prompt_of_training(config, Codec.open(base))  # as training saw it before checkpoints named a template
    onmt_llm.train(config)

    adapter = tmp_path / "run" / "m_step_2"
    merged = merge(base, adapter, tmp_path / "merged")
    onmt_llm.convert(merged, tmp_path / "hf", to="hf")
    onmt_llm.release(merged, tmp_path / "served", quantization="int8_float32")
    for model in (adapter, merged, tmp_path / "served"):
        codec = Codec.open(model)
        assert codec.config.template == corpus.get("template", "alpaca")
        assert prompt_of_training(config, codec) == asked

    onmt_llm.release(merged, tmp_path / "gguf", format="gguf", quantization="f32", verify="off")
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    stored = gguf.GGUFReader(file).get_field("tokenizer.chat_template")
    assert stored is not None and stored.contents() == (tmp_path / "hf/chat_template.jinja").read_text()

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_dict=False)
    assert tokenizer.convert_ids_to_tokens(ids) == asked

    for model in (merged, tmp_path / "served"):
        engine = onmt_llm.open_engine(model, max_length=4)
        assert engine.ask("Hello") == engine.generate([asked])[0][0].text
        assert engine.translate(["Hello"], template="auto") == [engine.ask("Hello")]


def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path: Path) -> None:
    base = tiny.write_chat_model(tmp_path / "base", template=None)
    for name, record in {"chats": {"messages": CHAT}, "texts": {"text": "a text"}}.items():
        (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps(record)}\n" * 9)
    data = {name: {"path_jsonl": str(tmp_path / f"{name}.jsonl")} for name in ("chats", "texts")}
    config = {**RUN, "data": data, "train_from": str(base), "train_steps": 4}
    onmt_llm.train(config, save_model=str(tmp_path / "whole"))
    onmt_llm.train(config, save_model=str(tmp_path / "parts"), train_steps=2)
    onmt_llm.train(config, save_model=str(tmp_path / "parts"), train_from=str(tmp_path / "parts_step_2"))
    whole, parts = (dict(Checkpoint.open(tmp_path / f"{name}_step_4").tensors()) for name in ("whole", "parts"))
    assert all(tensor.equal(parts[name]) for name, tensor in whole.items())
