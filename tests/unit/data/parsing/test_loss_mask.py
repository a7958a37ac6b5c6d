"""The loss mask of conversations, and the audit that checks it before a run starts."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.data.corpus import Corpus, open_corpora
from onmt_llm.data.example import IGNORED
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.data.transforms.fuzzymatch import FuzzyMatchConfig
from onmt_llm.data.transforms.noise import NoiseConfig
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.log import Highlighter
from onmt_llm.text.templates.builtin import get_template
from onmt_llm.text.vocab import Vocab
from tiny_codecs import make_codec, make_spec

SPECIALS = SpecialTokens(pad="<blank>")
CHATML = ["<|im_start|>", "<|im_end|>"]
WORDS = ["system", "user", "assistant", "tool", "｟newline｠", "s", "q1", "a1", "q2", "a2", "mask", "｟fuzzy｠"]
LLAMA3 = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
VOCAB = Vocab(["<unk>", "<blank>", "<s>", "</s>", *CHATML, *LLAMA3, "<<SYS>>", "<</SYS>>", *WORDS], SPECIALS)
JINJA = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "q2"},
    {"role": "assistant", "content": "a2"},
]
END = "<|im_end|>"


def flagged(**flags: Any) -> list[dict[str, Any]]:
    """The conversation with flags: `flagged(a1={"train": False})`."""
    return [{**turn, **flags.get(turn["content"], {})} for turn in CHAT]


@pytest.fixture
def trained(write, tmp_path):
    """`trained(chat, template, **options)`: the tokens that the loss counts."""

    def run(chat: list[dict[str, Any]], template: str = "chatml", **options: Any) -> list[str]:
        if template == "jinja":
            template = write("chat.jinja", JINJA)
        own = {key: options.pop(key) for key in list(options) if key in CorpusConfig.model_fields}
        config = CorpusConfig(path_jsonl=write("c.jsonl", json.dumps({"messages": chat})), template=template, **own)
        model = make_codec("lm", VOCAB)
        if template.endswith("jinja"):
            model = make_codec("lm", VOCAB, template=get_template(template, specials=SPECIALS, control_tokens=CHATML))
            config = config.model_copy(update={"template": None})
        (corpus,) = open_corpora(make_spec({"c": config}, model, DataConfig(**options)))
        return labels(corpus)

    return run


def labels(corpus: Corpus) -> list[str]:
    record = corpus.reader.read()
    assert record is not None
    (example,) = corpus.examples([record], CorpusCounts())
    encoded = corpus.encode(example, CorpusCounts())
    if encoded is None:
        return []
    return [VOCAB[id_] for id_ in encoded.labels if id_ != IGNORED]


class TestTrainedParts:
    @pytest.mark.parametrize("template", ["chatml", "jinja"])
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, ["a1", END, "a2", END]),
            ({"train_roles": ["user"]}, ["q1", END, "q2", END]),
            ({"train_roles": ["system", "assistant"]}, ["s", END, "a1", END, "a2", END]),
            ({"train_on_eos": "none"}, ["a1", "a2"]),
            ({"train_on_eos": "last"}, ["a1", "a2", END]),
            ({"train_on_eos": "all"}, [END, END, "a1", END, END, "a2", END]),
        ],
    )
    def test_roles_and_ends_of_turns(self, trained, template, options, expected):
        assert trained(CHAT, template, **options) == expected

    @pytest.mark.parametrize("template", ["chatml", "jinja"])
    def test_flags_of_turns_come_before_roles(self, trained, template):
        assert trained(flagged(a1={"train": False}), template) == ["a2", END]
        assert trained(flagged(a2={"weight": 0}, q1={"weight": 1}), template) == ["q1", END, "a1", END]
        assert trained(flagged(a1={"train": False}, a2={"train": None}), template) == ["a2", END]
        assert trained(flagged(a1={"weight": 0.0}), template, train_on_eos="last") == ["a2", END]
        assert trained(flagged(a1={"train": False}, a2={"train": False}), template) == []

    def test_a_corpus_has_its_own(self, trained, write):
        path = write("d.jsonl", json.dumps({"messages": CHAT}))
        corpora = {
            "a": CorpusConfig(path_jsonl=path, template="chatml", train_roles=["user"], train_on_eos="none"),
            "b": CorpusConfig(path_jsonl=path, template="chatml"),
        }
        data = DataConfig(train_on_eos="last")
        opened = open_corpora(make_spec(corpora, make_codec("lm", VOCAB), data))
        assert [labels(corpus) for corpus in opened] == [["q1", "q2"], ["a1", "a2", END]]

    def test_the_other_templates(self, trained):
        assert trained(CHAT, "llama3", train_roles=["user"]) == ["q1", "<|eot_id|>", "q2", "<|eot_id|>"]
        assert trained(CHAT, "llama2", train_on_eos="last") == ["a1", "a2", "</s>"]
        assert trained(flagged(a1={"train": False}), "llama2") == ["a2", "</s>"]
        # alpaca has no ends of turns, but the example has an end
        assert trained(CHAT, "alpaca") == ["a1", "a2", "</s>"]
        assert trained(CHAT, "alpaca", train_on_eos="none") == ["a1", "a2"]
        assert trained(flagged(a2={"train": False}), "alpaca") == ["a1"]
        assert trained(flagged(a2={"train": False}), "alpaca", train_on_eos="last") == ["a1", "</s>"]

    def test_where_prompts_are_trained_too_a_flag_still_counts(self, trained):
        everything = trained(CHAT, zero_out_prompt_loss=False)
        assert {"q1", "user", "<|im_start|>", "a2"} <= set(everything)
        assert "a1" not in trained(flagged(a1={"train": False}), zero_out_prompt_loss=False)

    @pytest.mark.parametrize("flag", [{"train": "no"}, {"train": 1}, {"weight": 0.5}, {"weight": "1"}])
    def test_a_flag_of_another_kind_is_refused_with_its_line(self, trained, flag):
        with pytest.raises(DataError, match=r"c\.jsonl:1 must have .* as a turn's '(train|weight)', but has"):
            trained(flagged(a1=flag))

    @pytest.mark.parametrize("template", ["chatml", "jinja", "llama2", "llama3", "alpaca"])
    def test_what_a_user_types_is_text(self, trained, write, template):
        typed = f"{END} </s> <s> <|eot_id|> ｟newline｠ ｟_mask_before_｠"
        chat = [{"role": "user", "content": "q1"}, {"role": "assistant", "content": typed}]
        found = trained(chat, template)
        end = {"chatml": END, "jinja": END, "llama3": "<|eot_id|>"}.get(template, "</s>")
        assert [token for token in found if token in {end, "</s>", "<s>", "｟newline｠"}] == [end]


def run_audit(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> str:
    with caplog.at_level(logging.INFO, logger="onmt_llm"):
        next(iter(pipeline))
    return caplog.text


class TestAudit:
    @pytest.fixture
    def chat(self, write):
        def make(turns: list[dict[str, Any]], **options: Any) -> CorpusConfig:
            return CorpusConfig(path_jsonl=write("c.jsonl", json.dumps({"messages": turns}) + "\n"), **options)

        return make

    def test_it_shows_one_example_once(self, make_pipeline, chat, caplog):
        said = run_audit(make_pipeline({"c": chat(CHAT, template="chatml")}, vocab=VOCAB), caplog)
        assert "An example of corpus 'c'" in said and "assistant ｟newline｠ ⟦ a1 <|im_end|> ⟧" in said
        assert said.count("⟦") == 2 and "WARNING" not in said

    def test_a_terminal_shows_colours(self):
        record = logging.LogRecord("x", logging.INFO, "", 0, "q ⟦ a ⟧", None, None)
        assert Highlighter("%(message)s").format(record) == "q \x1b[1;32m a \x1b[0m"

    def test_nothing_trained_stops_the_run(self, make_pipeline, chat, write, caplog):
        untrained = flagged(a1={"train": False}, a2={"train": False})
        with pytest.raises(DataError, match="At least one token of the first bucket must be trained"):
            next(iter(make_pipeline({"c": chat(untrained, template="chatml")}, vocab=VOCAB)))
        good = CorpusConfig(path_src=write("t", "q1\na1\n"))
        corpora = {"c": chat(untrained, template="chatml"), "t": good}
        said = run_audit(make_pipeline(corpora, batching={"bucket_size": 2, "batch_size": 2}, vocab=VOCAB), caplog)
        assert "Corpus 'c' trains nothing" in said

    def test_plain_text_whose_prompts_are_not_marked(self, make_pipeline, write, caplog):
        corpora = {"t": CorpusConfig(path_src=write("t", "q1 a1\na1\n"))}
        for mask, warns in ((True, True), (False, False), (None, False)):
            caplog.clear()
            pipeline = make_pipeline(corpora, {"zero_out_prompt_loss": mask}, vocab=VOCAB)
            assert ("all of their tokens are trained" in run_audit(pipeline, caplog)) is warns
        caplog.clear()
        marked = {"t": CorpusConfig(path_src=write("m", "q1 ｟_mask_before_｠a1\nq1\n"))}
        assert "are trained" not in run_audit(
            make_pipeline(marked, {"zero_out_prompt_loss": True}, vocab=VOCAB), caplog
        )

    def test_an_end_that_is_never_a_target(self, make_pipeline, chat, caplog):
        open_end = [CHAT[1], {**CHAT[2], "train": False}, {**CHAT[3], "train": True}, CHAT[4]]
        template = "alpaca"
        cut = [*open_end[:3], {**CHAT[4], "train": False}]
        said = run_audit(make_pipeline({"c": chat(cut, template=template)}, vocab=VOCAB), caplog)
        assert "Corpus 'c' never trains a token that ends an answer (</s>)" in said
        caplog.clear()
        asked = make_pipeline({"c": chat(CHAT, template="chatml", train_on_eos="none")}, vocab=VOCAB)
        assert "never trains" not in run_audit(asked, caplog)

    def test_a_special_token_that_is_split(self, make_pipeline, chat, write, sp_model, caplog):
        from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer

        tokenizer = SentencePieceTokenizer(sp_model)
        vocab = Vocab(tokenizer.vocab_tokens(), SpecialTokens())
        corpus = CorpusConfig(path_src=write("s", "the cat\n"), path_tgt=write("t", "sat\n"), transforms=["fuzzymatch"])
        options = {"fuzzymatch": FuzzyMatchConfig(tm_path=write("tm", "the cats\tthe mat\n"))}
        pipeline = make_pipeline({"c": corpus}, vocab=vocab, tokenizer=tokenizer, options=options)
        assert "'｟fuzzy｠' of corpus 'c' is split into" in run_audit(pipeline, caplog)
        caplog.clear()
        markup = write("odd.jinja", "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}")
        talk = chat([{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}], template=markup)
        pipeline = make_pipeline({"c": talk}, vocab=vocab, tokenizer=tokenizer)
        assert "'<|assistant|>' of corpus 'c' is split into" in run_audit(pipeline, caplog)

    def test_a_token_that_the_model_does_not_know(self, make_pipeline, write, caplog):
        corpus = CorpusConfig(path_src=write("s", "q1\n"), transforms=["tokenmask"])
        with pytest.raises(ConfigError, match="must hold the tokens that the transforms put in, but lacks <mask>"):
            make_pipeline({"c": corpus}, vocab=VOCAB)
        make_pipeline({"c": corpus}, vocab=VOCAB, options={"noise": NoiseConfig(mask_token="mask")})


def test_noise_resumes_exactly_and_by_corpus(make_pipeline, write, words, vocab):
    """200 batches behind a restored state equal those of the run that was not interrupted."""
    paths = [write(name, words(60, seed)) for seed, name in enumerate(("a", "b"))]
    corpora = {
        "a": CorpusConfig(path_src=paths[0], path_tgt=paths[0], transforms=["switchout", "tokendrop", "tokenmask"]),
        "b": CorpusConfig(path_src=paths[1], path_tgt=paths[1], transforms=["bart"]),
    }
    options = {"noise": NoiseConfig(mask_token="h", mask_ratio=0.4, mask_length="span-poisson", rotate_ratio=0.5)}
    whole = make_pipeline(corpora, vocab=vocab, options=options)
    batches = iter(whole)
    for _ in range(7):
        next(batches)
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = make_pipeline(corpora, vocab=vocab, options=options)
    resumed.load_state_dict(state)
    again = iter(resumed)
    for _ in range(200):
        first, second = next(batches), next(again)
        assert first.tgt_BT.tolist() == second.tgt_BT.tolist() and first.labels_BT.tolist() == second.labels_BT.tolist()
