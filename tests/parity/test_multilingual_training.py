"""Training between two pairs of languages: what `transformers` trains, validation by pair, adapters and releases."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.test_multilingual import lines, save_model, write_files
from parity.test_t5_text import save_t5, spiece  # noqa: F401 (a fixture)

import onmt_llm
from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.merge import merge
from onmt_llm.config.checkpoint import read_config
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.errors import ConfigError
from onmt_llm.releasing import release
from onmt_llm.text.codec import Codec

transformers = pytest.importorskip("transformers")
sacrebleu = pytest.importorskip("sacrebleu")

PAIRS = {
    "NllbTokenizer": [("eng_Latn", "fra_Latn"), ("fra_Latn", "deu_Latn")],
    "MBart50Tokenizer": [("en_XX", "fr_XX"), ("fr_XX", "de_DE")],
    "MBartTokenizer": [("en_XX", "fr_XX"), ("fr_XX", "de_DE")],
    "M2M100Tokenizer": [("en", "fr"), ("fr", "de")],
    "MarianTokenizer": [("", "fra"), ("", "deu_Latn")],
    "T5": [("", ""), ("", "")],
}
T5_TASKS = ["translate English to French: ", "translate French to German: "]
COUNT = 6
"""Lines of the second corpus; the first has twice as many, and twice the weight."""


def texts(seed: int, count: int) -> list[str]:
    return [line.strip() for line in lines(4 * count, seed) if line.strip()][:count]


@dataclass(frozen=True)
class Task:
    """A converted model, its original, and the options of a run on two pairs of languages."""

    name: str
    folder: Path
    tokenizer: Any
    model: Any
    options: dict[str, Any]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return PAIRS[self.name]

    def lines_of(self, corpus: int) -> list[tuple[str, str]]:
        """Sources and targets of a corpus."""
        sides = [(self.folder / f"{corpus}.{side}").read_text().splitlines() for side in ("src", "tgt")]
        return list(zip(*sides, strict=True))

    def theirs(self, corpus: int) -> list[tuple[list[int], list[int]]]:
        """Ids of sources and labels by the tokeniser of transformers."""
        src, tgt = self.pairs[corpus]
        before = ""
        if self.name == "T5":
            before = T5_TASKS[corpus]
        elif self.name == "MarianTokenizer":
            before = f">>{tgt}<< "
        else:
            self.tokenizer.src_lang, self.tokenizer.tgt_lang = src, tgt
        return [
            (self.tokenizer(before + one)["input_ids"], self.tokenizer(text_target=other)["input_ids"])
            for one, other in self.lines_of(corpus)
        ]

    def loss_of(self, model: Any, examples: list[tuple[list[int], list[int]]]) -> float:
        """The loss of transformers per label; mBART's last label, the language behind the end, is not counted."""
        total, count = 0.0, 0
        for src, labels in examples:
            kept = torch.tensor([labels])
            start = self.decoder_inputs(labels)
            if self.name == "MBartTokenizer":
                kept[0, -1] = -100
            with torch.no_grad():
                found = model(input_ids=torch.tensor([src]), decoder_input_ids=torch.tensor([start]), labels=kept)
            number = int((kept != -100).sum())
            total, count = total + float(found.loss) * number, count + number
        return total / count

    def decoder_inputs(self, labels: list[int]) -> list[int]:
        """What the decoder of transformers reads if the model is given these labels."""
        seen: list[torch.Tensor] = []
        decoder = self.model.get_decoder()
        hook = decoder.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"]), with_kwargs=True)
        with torch.no_grad():
            self.model(input_ids=torch.tensor([labels]), labels=torch.tensor([labels]))
        hook.remove()
        return seen[0][0].tolist()  # type: ignore[no-any-return]

    def run(self, name: str, **options: Any) -> Path:
        result = onmt_llm.train({**self.options, **options}, save_model=str(self.folder / name))
        assert result.checkpoint is not None
        return result.checkpoint

    def reports(self, name: str, split: str) -> list[dict[str, Any]]:
        rows = map(json.loads, (self.folder / f"{name}_metrics.jsonl").read_text().splitlines())
        return [row for row in rows if row["split"] == split]


def make_task(folder: Path, name: str, model: tuple[Any, Any]) -> Task:
    convert(folder / "hf", folder / "base")
    kind = read_config(folder / "base").tokenizer.kind
    tokenize = "huggingface_tokenize" if kind == "huggingface" else kind
    data: dict[str, dict[str, Any]] = {}
    for corpus, (src, tgt) in enumerate(PAIRS[name]):
        count = COUNT * (2 - corpus)
        for side, seed in (("src", 20), ("tgt", 30)):
            content = "".join(f"{line}\n" for line in texts(seed + corpus, count))
            (folder / f"{corpus}.{side}").write_text(content, encoding="utf-8")
        paths: dict[str, Any] = {f"path_{side}": str(folder / f"{corpus}.{side}") for side in ("src", "tgt")}
        if name == "T5":
            paths |= {"src_prefix": T5_TASKS[corpus].strip(), "transforms": ["prefix", tokenize]}
        else:
            paths |= {"src_lang": src, "tgt_lang": tgt}
        data[f"pair{corpus}"] = {**paths, "weight": 2 - corpus}
        data[f"valid_{corpus}"] = paths
    options = {
        "data": data,
        "transforms": [tokenize],
        "train_from": str(folder / "base"),
        **{"batch_size": 3 * COUNT, "bucket_size": 3 * COUNT, "valid_batch_size": 4},
        **{"train_steps": 1, "valid_steps": 1, "save_checkpoint_steps": 1, "report_every": 1},
        **{"optim": "sgd", "learning_rate": 1e-12, "dropout": [0.0], "attention_dropout": [0.0]},
        **{"progress": "none", "seed": 1},
    }
    return Task(name, folder, *model, options)


@pytest.fixture(scope="module", params=PAIRS)
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder, name = tmp_path_factory.mktemp("task"), request.param
    if name == "T5":
        tokenizer = save_t5(folder / "hf", request.getfixturevalue("spiece"))
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "hf")
    else:
        tokenizer = write_files(folder / "hf", name)
        model = save_model(folder / "hf", name, tokenizer)
    return make_task(folder, name, (tokenizer, model.eval()))


def test_sources_labels_and_decoder_inputs(task: Task) -> None:
    """One batch has the whole of both corpora, since their weights are as their sizes."""
    config = onmt_llm.load_config(task.options)
    corpora = {name: corpus for name, corpus in config.corpora.data.items() if name.startswith("pair")}
    codec = Codec.open(task.folder / "base")
    batch = next(iter(Pipeline(PipelineSpec(corpora, config.corpora, codec, batching=config.batching))))
    found = []
    for row in range(len(batch.tgt_BT)):
        assert batch.src_BS is not None and batch.src_mask_BS is not None
        labels = batch.labels_BT[row]
        length = int((labels != -100).nonzero().max()) + 1
        assert (labels[:length] != -100).all()
        src, inputs = batch.src_BS[row][batch.src_mask_BS[row]], batch.tgt_BT[row][:length]
        found.append((src.tolist(), inputs.tolist(), labels[:length].tolist()))
    expected = []
    for src, labels in [*task.theirs(0), *task.theirs(1)]:
        inputs = task.decoder_inputs(labels)
        length = len(labels) - (task.name == "MBartTokenizer")
        expected.append((src, inputs[:length], labels[:length]))
    assert sorted(found) == sorted(expected)


def test_losses_in_training_and_validation(task: Task) -> None:
    task.run("once")
    both = [task.theirs(0), task.theirs(1)]
    (report,), (validation,) = task.reports("once", "train"), task.reports("once", "valid")
    assert report["xent"] == pytest.approx(task.loss_of(task.model, [*both[0], *both[1]]), rel=1e-5)
    for corpus, examples in enumerate(both):
        loss = task.loss_of(task.model, examples)
        assert report[f"pair{corpus}/xent"] == pytest.approx(loss, rel=1e-5)
        assert validation[f"valid_{corpus}/xent"] == pytest.approx(loss, rel=1e-5)


LEARN: dict[str, Any] = {
    "optim": "adam",
    "learning_rate": 4e-3,
    **{"train_steps": 60, "valid_steps": 60, "save_checkpoint_steps": 60, "report_every": 60},
}
SLOWER = {
    name: dict.fromkeys(("train_steps", "valid_steps", "save_checkpoint_steps"), 240)
    for name in ("MarianTokenizer", "T5")
}
LORA: dict[str, Any] = {"lora_layers": ["q_proj", "k_proj", "v_proj", "o_proj"], "lora_rank": 8, "lora_alpha": 16}


def check_translations(task: Task, scores: dict[str, float], *models: Path) -> None:
    """Each model translates each pair alike, with the scores of the validation."""
    for corpus, (src, tgt) in enumerate(task.pairs):
        sources, targets = zip(*task.lines_of(corpus), strict=True)
        before = T5_TASKS[corpus] if task.name == "T5" else ""
        for path in models:
            engine = onmt_llm.open_engine(path, device="cpu", src_lang=src, tgt_lang=tgt, max_length=40)
            found = engine.translate([before + source for source in sources])
            score = sacrebleu.corpus_bleu(found, [list(targets)]).score
            assert score == pytest.approx(scores[f"valid_{corpus}/BLEU"], abs=0.5), path


@pytest.mark.parametrize(
    "task",
    ["NllbTokenizer", *(pytest.param(name, marks=pytest.mark.slow) for name in PAIRS if name != "NllbTokenizer")],
    indirect=True,
)
def test_a_trained_model_translates_both_pairs(task: Task) -> None:
    """Whole, and as an adapter that is merged; in both engines, and back in transformers."""
    metrics = {"valid_metrics": ["BLEU"], "valid_max_length": 40}
    trained = task.run("whole", **{**LEARN, **metrics, **SLOWER.get(task.name, {})})
    scores = task.reports("whole", "valid")[-1]
    assert min(scores["valid_0/BLEU"], scores["valid_1/BLEU"]) > 5  # it knows both pairs apart
    release(trained, task.folder / "whole served", quantization="float32", text="\n".join(texts(50, 9)))
    check_translations(task, scores, trained, task.folder / "whole served")

    adapter = task.run("lora", **LEARN, **LORA, **metrics)
    merged = merge(task.folder / "base", adapter, task.folder / "merged")
    release(merged, task.folder / "lora served", quantization="float32", text="\n".join(texts(50, 9)))
    check_translations(task, task.reports("lora", "valid")[-1], merged, task.folder / "lora served")

    export_hf(merged, task.folder / "back")
    back = transformers.AutoModelForSeq2SeqLM.from_pretrained(task.folder / "back").eval()
    for corpus in (0, 1):
        expected = task.reports("lora", "valid")[-1][f"valid_{corpus}/xent"]
        assert task.loss_of(back, task.theirs(corpus)) == pytest.approx(expected, rel=1e-4)


def test_an_unknown_language_of_a_corpus_is_refused(task: Task) -> None:
    _, tgt = task.pairs[0]
    if not tgt:
        return
    data = {**task.options["data"], "pair0": {**task.options["data"]["pair0"], "tgt_lang": f"{tgt}x"}}
    with pytest.raises(ConfigError, match=f"tgt_lang must be one of .* but is '{tgt}x'"):
        task.run("refused", data=data)
