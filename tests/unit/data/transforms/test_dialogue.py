"""dialogue, dialogue_chunk: tags, variants and windows of transcribed dialogues.

The expected texts are those of the reference (the preparation of the Claire models).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.example import Example
from onmt_llm.data.pack import on_this_machine, pack
from onmt_llm.data.token_shards.shard import read_index
from onmt_llm.data.transforms.build import build_transforms
from onmt_llm.data.transforms.dialogue import text as dialogue_text
from onmt_llm.data.transforms.dialogue.names import WORDINGS
from onmt_llm.data.transforms.dialogue.variants import VariantMaker
from onmt_llm.data.transforms.dialogue.windows import DialogueChunk
from onmt_llm.errors import DataError
from onmt_llm.text.segment import Segment
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer
from tiny_codecs import make_codec, make_context, make_spec

TED = replace(WORDINGS["fr"], first_names=("Ted",), last_names=("Roy",))
NAMED = (
    "[Alison Jordy:] Tu me fais rire [LAUGHTER]. Je chante [SINGING]? [claude-marie JR Michel:] Il y a un bruit "
    "[NOISE], je l'ai dit à [PII]. [Alison Jordy:] Ah"
)
LOWEST = (
    "[Intervenant 1:] tu me fais rire je chante [Intervenant 2:] il y a un bruit je l'ai dit à ted [Intervenant 1:] ah"
)


def build(context=None, **own):
    context = context or make_context(task="lm", training=True)
    return build_transforms(["dialogue"], {}, CorpusConfig(options=own), context)[0]


def run(transform, *texts: str) -> list[str | None]:
    return [each.src[0].text for each in transform.batch([Example([Segment(text)]) for text in texts])]


def normalised(text: str, *, keep_events: bool = False) -> str:
    return dialogue_text.normalised(text, TED, Random(0), keep_events=keep_events)


@pytest.mark.parametrize(
    ("text", "keep_events", "expected"),
    [
        (
            NAMED,
            False,
            "[Alison Jordy:] Tu me fais rire. Je chante ? [Claude-Marie JR Michel:] Il y a un bruit, je l'ai dit à "
            "Ted. [Alison Jordy:] Ah",
        ),
        (
            NAMED,
            True,
            "[Alison Jordy:] Tu me fais rire [rire]. Je chante ? [Claude-Marie JR Michel:] Il y a un bruit [bruit], "
            "je l'ai dit à [Nom]. [Alison Jordy:] Ah",
        ),
        ("[speaker001:]  A \t[12:30] [speaker012:] b .", False, "[Intervenant 1:] A [Intervenant 12:] b."),
        (
            "[speaker001:] Jean-Paul\n[speaker002:] [rire]\n[speaker001:] que non\n[speaker002:] non ?\n[x:] ...\n"
            "[speaker002:] Oui\n[speaker001:] ...",
            False,
            "[Intervenant 1:] Jean-Paul que non\n[Intervenant 2:] non ? Oui\n[Intervenant 1:] ...",
        ),
        (
            "[M. Jean-Marie:] Hey\n[Dr. Docteur JR:] Ow\n[M. Jean-Marie:] [blah].\n[M. Hide:] Hey\n[M. Jean-Marie:] "
            "[re]\n[m. hide:] Ow",
            False,
            "[M. Jean-Marie:] Hey\n[Dr. Docteur JR:] Ow\n[M. Hide:] Hey Ow",
        ),
    ],
)
def test_tags_and_turns_are_normalised(text: str, keep_events: bool, expected: str) -> None:
    assert normalised(text, keep_events=keep_events) == expected


def test_names_get_capitals() -> None:
    name = "jean Jean JEAN JR jean-claude Jean-Claude d'estaing D'Estaing"
    assert dialogue_text.capitalised(name) == "Jean Jean Jean JR Jean-Claude Jean-Claude D'Estaing D'Estaing"


@pytest.mark.parametrize(
    ("text", "keep_events", "number"),
    [
        (NAMED, False, 8),
        (NAMED, True, 9),
        ("[speaker001:] Oui je [speaker002:] non", False, 5),
        ("[speaker001:] oui. je [speaker002:] non", False, 5),
        ("[speaker001:] oui [speaker002:] non", False, 2),
        ("[speaker001:] a [speaker002:] b [speaker003:] c", False, 1),
        ("no tag.", False, 1),
    ],
)
def test_all_variants_differ_and_the_normalised_text_is_first(text: str, keep_events: bool, number: int) -> None:
    found = VariantMaker(TED, keep_events=keep_events).all(text, Random(3))
    assert len(found) == len(set(found)) == number + 1
    assert found[0] == normalised(text, keep_events=keep_events)
    if text is NAMED:
        assert LOWEST in found


def test_two_speakers_become_dashes_and_one_a_monologue() -> None:
    maker = VariantMaker(TED, steps=frozenset({"dashes"}))
    assert maker.all("[A:] oui\n[B:] non", Random(0))[1:] == ["- oui\n- non"]
    assert maker.all("[A:] oui, bon\n[A:] non", Random(0))[1:] == ["oui, bonnon"]


def test_one_variant_is_a_random_subset_of_the_steps() -> None:
    maker = VariantMaker(TED, steps=frozenset({"lower", "punctuation"}))
    found = Counter(maker.some("[A:] Oui.", 1, Random(seed))[1] for seed in range(2000))
    # one step with half of the chances, then either one; else both
    assert found.keys() == {"[A:] oui.", "[A:] Oui", "[A:] oui"}
    assert all(abs(found[text] / 2000 - share) < 0.04 for text, share in (("[A:] oui", 0.5), ("[A:] Oui", 0.25)))


def test_speakers_keep_apart_whatever_their_names() -> None:
    mixed = dialogue_text.with_numbers("[Paul:] a [Speaker 1:] b [Paul:] c", WORDINGS["en"])
    assert mixed == "[Speaker 1:] a [Speaker 2:] b [Speaker 1:] c"
    crowd = " ".join(f"[Speaker {number}:] x" for number in range(400))
    for seed in range(4):
        named = dialogue_text.with_names(crowd, WORDINGS["en"], Random(seed))
        assert len(dialogue_text.speakers(named)) == 400


def test_variants_depend_on_the_dialogue_alone_and_only_training_has_them() -> None:
    transform = build(dialogue_variants=8)
    first, second = run(transform, NAMED), run(transform, "[a:] x", NAMED)
    assert len(first) == 9 and second[-9:] == first
    assert transform.made == 8 + 8 + len(second) - 9 - 1
    assert not transform.draws
    assert run(build(dialogue_variants=8, dialogue_seed=1), NAMED) != first
    assert len(run(build(make_context(task="lm"), dialogue_variants=8), NAMED)) == 1


def test_one_text_is_drawn_anew_in_every_pass() -> None:
    transform = build(dialogue_draw="one", dialogue_variants=8)
    drawn = set()
    for seed in range(60):
        transform.reseed(seed)
        (text,) = run(transform, "[speaker001:] oui [speaker002:] non")
        drawn.add((text or "")[:3])
    assert transform.draws and drawn >= {"[Sp", "- o"}


def test_what_is_no_dialogue() -> None:
    transform = build()
    assert run(transform, "[NOISE]") == [] and transform.dropped == {"empty": 1}
    with pytest.raises(DataError, match="must be given plain text"):
        transform.batch([Example([Segment("a")], [Segment("b")], path=Path("x"), line=3)])


class Tokens(WhitespaceTokenizer):
    """Tokens that are joined without spaces."""

    def decode(self, tokens):
        return "".join(tokens)


def windows(tokens: list[str], length: int, **options) -> list[list[Segment]]:
    transform = DialogueChunk(length=length, tokenizer=Tokens(), train_repeated=options.get("train_repeated", False))
    chunks = transform.batch([Example([Segment(tokens=tokens)])])
    assert [chunk.closed for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    return [chunk.src for chunk in chunks]


def shown(segments: list[Segment]) -> str:
    return "".join(
        "".join(each.tokens or []) if each.train_on else f"<{''.join(each.tokens or [])}>" for each in segments
    )


def test_windows_begin_at_a_turn_or_repeat_its_tag() -> None:
    tokens = re.findall(r":\]| ?\w|.|\n", "[A:] a b\n[B:] c de f g h i j k\n[A:] l\n[B:] m")
    assert [shown(window) for window in windows(tokens, 10)] == [
        "[A:] a b\n[B:] c",
        "<[B:] c> de f g h i",
        "<[B:]> j k\n[A:] l",
        "<[A:] l>\n[B:] m",
    ]
    # " d" and "e" are one word, so the window after a cut between them begins with " d"
    assert shown(windows(["[", "B", ":]", *[" c"] * 8, " d", "e", " f"], 12)[1]) == "<[B:] d>e f"
    assert shown(windows(["x"] * 7, 4)[1]) == "xxx"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 40)), min_size=1, max_size=8), st.integers(12, 40))
def test_every_token_is_trained_once_and_each_window_has_a_tag(turns: list[tuple[str, int]], length: int) -> None:
    tokens = [token for name, words in turns for token in ("[", name, ":]", *[" w"] * words, "\n")]
    found = windows(tokens, length)
    trained = [token for window in found for each in window if each.train_on for token in each.tokens or []]
    assert trained == tokens
    assert all((window[0].tokens or [])[:1] == ["["] for window in found)
    assert all(sum(each.num_tokens or 0 for each in window) <= length for window in found)
    if len(found) > 1:
        repeated = windows(tokens, length, train_repeated=True)
        assert [shown(window) for window in repeated] == [shown(w).replace("<", "").replace(">", "") for w in found]


@pytest.mark.slow
def test_a_packed_corpus_is_the_same_with_two_processes(tmp_path: Path, vocab) -> None:
    file = tmp_path / "dialogues.txt"
    file.write_text("\n\n".join(f"[speaker001:] a B {n}.\n[speaker002:] c, d" for n in range(40)) + "\n")
    corpus = CorpusConfig(
        path_txt=str(file),
        transforms=["dialogue", "dialogue_chunk"],
        options={"dialogue_variants": 8, "dialogue_length": 8},
    )
    spec = make_spec({"talks": corpus}, make_codec("lm", vocab))
    found = []
    for processes in (1, 2):
        folder = pack(spec, tmp_path / str(processes), run=on_this_machine(processes))["talks"]
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
        counts = read_index(folder)["counts"]
        assert counts["read"] + counts["made"] == counts["kept"] + sum(counts["dropped"].values())
        assert counts["made"] > 300
    assert found[0] == found[1]
