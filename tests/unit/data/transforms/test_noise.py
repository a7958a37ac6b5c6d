"""Noise on tokens (switchout, tokendrop, tokenmask, bart) and fill in the middle, with statistics over fixed seeds."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.example import Example, side_tokens
from onmt_llm.data.transforms.bart import Noising, split_sentences
from onmt_llm.data.transforms.build import build_transforms
from onmt_llm.data.transforms.fim import FimConfig
from onmt_llm.data.transforms.noise import NoiseConfig
from onmt_llm.data.transforms.transform import Transform
from onmt_llm.errors import ConfigError
from onmt_llm.text.segment import Segment
from onmt_llm.text.vocab import Vocab
from tiny_codecs import make_context

WORDS = [f"w{n}" for n in range(50)]
VOCAB = Vocab(
    ["<unk>", "<blank>", "<s>", "</s>", "<mask>", "<0x0A>", "｟ent｠", *WORDS, "averyunlikelytoken0"],
    SpecialTokens(pad="<blank>"),
)
DRAWS = 20_000


def build(name: str, *, training: bool = True, task: str = "seq2seq", **options) -> Transform:
    context = make_context(task=task, training=training, vocab=VOCAB, control_tokens=frozenset({"<|im_end|>"}))
    transform = build_transforms([name], {"noise": NoiseConfig(**options)}, CorpusConfig(), context)[-1]
    transform.reseed(5)
    return transform


def pair(src: list[str], tgt: list[str]) -> Example:
    return Example([Segment(tokens=list(src))], [Segment(tokens=list(tgt))])


def lm(*parts: tuple[list[str], bool]) -> Example:
    return Example([Segment(tokens=list(tokens), train_on=train_on) for tokens, train_on in parts])


def changed(transform: Transform, tokens: list[str]) -> list[str]:
    example = transform(pair(tokens, ["x"]))
    assert example is not None
    return side_tokens(example.src)


@pytest.mark.parametrize("name", ["switchout", "tokendrop", "tokenmask", "bart"])
class TestAll:
    options = {"mask_ratio": 0.5, "insert_ratio": 0.3, "rotate_ratio": 1.0}

    def test_acts_in_training_only(self, name):
        tokens = WORDS[:20]
        assert changed(build(name, training=False, **self.options), tokens) == tokens
        transform = build(name, **self.options)
        assert any(changed(transform, tokens) != tokens for _ in range(5))

    def test_repeats_after_reseed_and_leaves_its_input_alone(self, name):
        transform = build(name, switchout_temperature=0, tokendrop_temperature=0, **self.options)
        kept = WORDS[:20]
        first = [changed(transform, kept) for _ in range(8)]
        assert kept == WORDS[:20] and len({tuple(tokens) for tokens in first}) > 1
        transform.reseed(5)
        assert [changed(transform, kept) for _ in range(8)] == first
        transform.reseed(6)
        assert [changed(transform, kept) for _ in range(8)] != first

    def test_what_has_a_role_stays(self, name):
        transform = build(name, random_ratio=0.5, replace_length=0, mask_ratio=1.0)
        for _ in range(50):
            tokens = changed(transform, ["｟ent｠", "w1", "w2", "<|im_end|>", "w3"])
            assert [token for token in tokens if token in ("｟ent｠", "<|im_end|>")] == ["｟ent｠", "<|im_end|>"]

    def test_stands_behind_the_tokeniser(self, name):
        with pytest.raises(ConfigError, match=f"Transform '{name}' must come after the tokeniser"):
            build_transforms([name, "sentencepiece"], {}, CorpusConfig(), make_context())


class TestDistance:
    @pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
    def test_as_many_tokens_are_changed_as_the_formula_says(self, temperature):
        """P(d) = exp(-temperature d) / sum, d = 0 ... n - 1 (Wang et al. 2018), for each of the three."""
        size = 10
        weights = [math.exp(-temperature * d) for d in range(size)]
        expected = [weight / sum(weights) for weight in weights]
        for name in ("switchout", "tokendrop", "tokenmask"):
            transform = build(name, **{f"{name}_temperature": temperature})
            found: Counter[int] = Counter()
            for _ in range(DRAWS):
                tokens = changed(transform, WORDS[:size])
                differ = sum(a != b for a, b in zip(tokens, WORDS, strict=False))
                found[size - len(tokens) if name == "tokendrop" else differ] += 1
            assert sum(found.values()) == DRAWS and max(found) < size
            for d in range(size):
                tolerance = 4 * math.sqrt(expected[d] * (1 - expected[d]) / DRAWS) + 1e-4
                assert abs(found[d] / DRAWS - expected[d]) < tolerance, (name, d)

    def test_switchout_draws_text_evenly_for_both_sides(self):
        transform = build("switchout", switchout_temperature=0)
        drawn: Counter[str] = Counter()
        for _ in range(5000):
            example = transform(pair(["x"] * 6, ["y"] * 6))
            assert example is not None
            drawn.update(side_tokens(example.src) + side_tokens(example.tgt))
        assert set(drawn) == {"x", "y", *WORDS}
        total = sum(drawn[word] for word in WORDS)
        assert all(abs(drawn[word] / total * len(WORDS) - 1) < 0.2 for word in WORDS)

    def test_tokendrop_drops_every_place_as_often_and_never_all(self):
        transform = build("tokendrop", tokendrop_temperature=0)
        kept: Counter[str] = Counter()
        for _ in range(5000):
            kept.update(changed(transform, WORDS[:5]))
        assert all(abs(kept[word] / 5000 - 0.6) < 0.04 for word in WORDS[:5])
        assert changed(transform, ["w1"]) == ["w1"]

    def test_tokenmask_masks_what_the_model_is_given(self):
        transform = build("tokenmask", tokenmask_temperature=0)
        example = transform(pair(WORDS[:30], WORDS[:30]))
        assert example is not None and "<mask>" in side_tokens(example.src) and side_tokens(example.tgt) == WORDS[:30]
        text = build("tokenmask", tokenmask_temperature=0, task="lm")(lm((WORDS[:30], False), (WORDS[:30], True)))
        assert text is not None and "<mask>" in (text.src[0].tokens or []) and text.src[1].tokens == WORDS[:30]


class TestBart:
    def noise(self, tokens: list[str], **options) -> list[str]:
        return changed(build("bart", **options), tokens)

    def test_ratios_of_0_and_1(self):
        tokens = ["▁a", "b", "▁c", "d", "e"]
        assert self.noise(tokens) == tokens
        assert self.noise(tokens, mask_ratio=1) == ["<mask>"] * 5
        assert self.noise(tokens, mask_ratio=1, mask_length="word", replace_length=1) == ["<mask>"] * 2
        assert self.noise(tokens, mask_ratio=1, mask_length="word", replace_length=-1) == ["<mask>"] * 5
        assert self.noise(tokens, mask_ratio=1, replace_length=0) == []
        inserted = self.noise(tokens, insert_ratio=1)
        assert len(inserted) == 10 and [token for token in inserted if token != "<mask>"] == tokens
        assert set(self.noise(tokens, mask_ratio=1, random_ratio=1)) <= set(WORDS)

    @pytest.mark.parametrize("tokens", [["▁a", "b", "▁c"], ["Ġa", "b", "Ġc"], ["a￭", "b", "c"], ["a@@", "b", "c"]])
    def test_the_tokens_show_where_words_begin(self, tokens):
        assert self.noise(tokens, mask_ratio=1, mask_length="word", replace_length=1) == ["<mask>"] * 2

    def test_a_share_of_the_words_is_masked_whole(self):
        tokens = [piece for word in WORDS[:20] for piece in (f"▁{word}", "s")]
        transform = build("bart", mask_ratio=0.3, mask_length="word")
        places: Counter[int] = Counter()
        for _ in range(3000):
            noised = changed(transform, tokens)
            masked = [place for place, token in enumerate(noised) if token == "<mask>"]
            assert len(masked) == 12 and all(
                a % 2 == 0 and b == a + 1 for a, b in zip(masked[::2], masked[1::2], strict=True)
            )
            places.update(masked)
        assert all(abs(count / 3000 - 0.3) < 0.04 for count in places.values())

    def test_spans_mask_the_same_share_in_fewer_pieces(self):
        """Lengths are Poisson's: with lambda 3 a budget of 30 words is about 10 spans, 5% of them of length 0."""
        tokens = [f"▁{word}" for word in WORDS] * 2
        noising = Noising(
            NoiseConfig(mask_ratio=0.3, mask_length="span-poisson", replace_length=1), vocab=[], control_tokens=()
        )
        rng = np.random.default_rng(3)
        lost, masks = [], []
        for _ in range(2000):
            noised = noising(list(tokens), rng)
            masks.append(noised.count("<mask>"))
            lost.append(len(tokens) - (len(noised) - masks[-1]))
        # spans may overlap, or run over the end: a little less than the budget is lost
        assert 0.22 < np.mean(lost) / len(tokens) <= 0.3 and 8 < np.mean(masks) < 12
        lengths = [length for _ in range(3000) for length in noising._lengths(30, rng)[:-1]]
        assert abs(np.mean(lengths) - 3) < 0.15 and abs(lengths.count(0) / len(lengths) - math.exp(-3)) < 0.01

    def test_rotation_and_permutation(self):
        transform = build("bart", rotate_ratio=0.5)
        rolled = [changed(transform, WORDS[:4]) for _ in range(4000)]
        assert abs(sum(tokens != WORDS[:4] for tokens in rolled) / 4000 - 0.5) < 0.03
        assert all(" ".join(tokens) in " ".join(WORDS[:4] * 2) for tokens in rolled)
        sentences = [["▁a", "￭."], ["▁b", "▁c", "?"], ["▁d", "!"], ["▁e"]]
        tokens = [token for sentence in sentences for token in sentence]
        assert split_sentences(tokens) == sentences and split_sentences(["a", ".", "."]) == [["a", ".", "."]]
        transform = build("bart", permute_sent_ratio=1)
        orders = {tuple(changed(transform, tokens)) for _ in range(500)}
        assert len(orders) == math.factorial(4) and all(sorted(order) == sorted(tokens) for order in orders)

    def test_options_have_limits(self):
        for wrong in ({"mask_ratio": 1.5}, {"mask_length": "letter"}, {"replace_length": 2}, {"poisson_lambda": 0}):
            with pytest.raises(ValidationError):
                NoiseConfig(**wrong)


class TestFim:
    def build(self, *, training: bool = True, **options) -> Transform:
        context = make_context(training=training)
        transform = build_transforms(["fim"], {"fim": FimConfig(**options)}, CorpusConfig(), context)[0]
        transform.reseed(1)
        return transform

    def parts(self, transform: Transform, text: str) -> list[str]:
        example = transform(Example([Segment(text)]))
        assert example is not None and all(segment.train_on for segment in example.src)
        return [segment.text or (segment.tokens or [""])[0] for segment in example.src]

    def test_both_orders_hold_the_text(self):
        text = "def f(x):\n    return x"
        for spm_rate, first in ((0, "psm"), (1, "spm")):
            transform = self.build(fim_rate=1, fim_spm_rate=spm_rate)
            for _ in range(200):
                joined = "".join(self.parts(transform, text))
                before, middle = joined.split("<fim_middle>")
                prefix, suffix = before.removeprefix("<fim_prefix>").split("<fim_suffix>")
                assert joined.startswith("<fim_prefix><fim_suffix>" if first == "spm" else "<fim_prefix>")
                assert (middle + suffix if first == "spm" else prefix + middle + suffix) == text

    def test_rates(self):
        transform = self.build(fim_rate=0.4, fim_spm_rate=0.25)
        found = [self.parts(transform, "x" * 100) for _ in range(DRAWS)]
        moved = [parts for parts in found if parts[0] == "<fim_prefix>"]
        assert abs(len(moved) / DRAWS - 0.4) < 0.015
        assert abs(sum(parts[1] == "<fim_suffix>" for parts in moved) / len(moved) - 0.25) < 0.03

    def test_what_it_leaves_alone(self):
        chat = Example([Segment("a", train_on=False), Segment("b")])
        couple = Example([Segment("a")], [Segment("b")])
        acting, inert = self.build(fim_rate=1), self.build(training=False, fim_rate=1)
        for transform, example in ((inert, Example([Segment("text")])), (acting, chat), (acting, couple)):
            before = list(example.src)
            assert transform(example) is example and example.src == before
        with pytest.raises(ConfigError, match="must be used with a language model"):
            build_transforms(["fim"], {}, CorpusConfig(), make_context(task="seq2seq"))
