"""Lines in ten scripts, with digits, punctuation, spaces and emoji: what tokenisers are compared on."""

from __future__ import annotations

import random

ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGäéßñçŁ",
    "αβγδεζηθλμνξοπρςστυφχψωάέΑΒΓ",
    "абвгдежзийклмнопрстуфхцчшщыьэюяЖЯё",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهويًّ",
    "אבגדהוזחטיכלמנסעפצקרשתםןף",
    "अआइईउकखगघचजटडतदनपबमयरलवशसह़ािीुे्",
    "กขคงจชซดตทนบปพมยรลวสหอะาิีุูเแไ่้",
    "的一是不了人我在有他这为之大来以个中上们",
    "가나다라마바사아자차카타파하국어의는을이",
    "あいうえおかきくけこさしすせそたちつてとなにカタナ",
)
MARKS = (".", ",", "!?", "...", "(", ")", '"', "'s", "n't", "-", "–", "«", "。", "😀", "🇪🇺", "２", "½")


def lines(count: int, *, seed: int = 0) -> list[str]:
    """`count` lines, each mostly in one script, from nothing to about twenty words."""
    draw = random.Random(seed)

    def word(alphabet: str) -> str:
        if draw.random() < 0.1:
            return str(draw.randrange(10 ** draw.randint(1, 6)))
        return "".join(draw.choices(alphabet, k=draw.randint(1, 9)))

    def line(alphabet: str) -> str:
        words = [word(alphabet if draw.random() < 0.9 else draw.choice(ALPHABETS)) for _ in range(draw.randint(0, 20))]
        marked = [w + draw.choice(MARKS) if draw.random() < 0.2 else w for w in words]
        return draw.choice((" ", " ", " ", "  ")).join(marked)

    return [line(ALPHABETS[number % len(ALPHABETS)]) for number in range(count)]
