"""Speed of `dialogue` beside a plain Python program: python docs/benchmarks/dialogues.py [DIALOGUES]

Both normalise random dialogues and make all of their variants; the plain program applies one regular expression after
the other to the whole text, as the preparation of the Claire models does.
"""

from __future__ import annotations

import re
import sys
import time
from random import Random

from onmt_llm.data.transforms.dialogue.names import WORDINGS
from onmt_llm.data.transforms.dialogue.variants import VariantMaker

WORDS = "Bonjour oui, non. je suis [NOISE] là [LAUGHTER] pour [PII] vous ! voir euh… Jean-Paul d'accord ? [SINGING]"
TURN = re.compile(r"\[[^\n\]]+:\]")
EMPTY = re.compile(rf"{TURN.pattern}[^a-zA-ZÀ-ÿ]*({TURN.pattern})")
TWICE = re.compile(rf"({TURN.pattern}) ([^\[]*)\s\1")
MARKS = re.compile(r"[,;.!?…]|: ")


def dialogues(number: int) -> list[str]:
    """Dialogues of 20 to 80 turns between two speakers."""
    random = Random(0)

    def turn(place: int) -> str:
        return f"[speaker{place % 2 + 1:03d}:] " + " ".join(random.choices(WORDS.split(), k=random.randint(0, 20)))

    return ["\n".join(turn(place) for place in range(random.randint(20, 80))) for _ in range(number)]


def plain(text: str, random: Random) -> list[str]:
    """The variants of a dialogue of two numbered speakers, straightforwardly."""
    names = WORDINGS["fr"].first_names

    def tag(match: re.Match[str]) -> str:
        content = match[1]
        if content.startswith("speaker"):
            return f"[Intervenant {int(content[7:-1])}:]"
        return random.choice(names) if content == "PII" else ""

    text = re.sub(r"\[([^\n\]]*)\]", tag, text)
    while EMPTY.search(text):
        text = TWICE.sub(r"\1 \2", EMPTY.sub(r"\1", text))
    text = tidy(text)
    first, second = random.choice(names), random.choice(names)
    named = text.replace("Intervenant 1", first).replace("Intervenant 2", second)
    bases = [text, named, TURN.sub("-", text)]
    found = list(bases)
    for base in bases:
        without = tidy(MARKS.sub("", base))
        found += [without, re.sub(r"(\[[^\]]*\])|([^\[]+)", lambda match: match[1] or match[0].lower(), without)]
    return found


def tidy(text: str) -> str:
    text = re.sub(r"(\w) ([.,])", r"\1\2", re.sub(r"[\t ]+", " ", text))
    return re.sub(r"\s+\n", "\n", text).strip()


def main() -> None:
    texts = dialogues(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    maker = VariantMaker(WORDINGS["fr"])
    for name, make in (("plain", plain), ("dialogue", maker.all)):
        random, start = Random(1), time.process_time()
        made = sum(len(make(text, random)) for text in texts)
        seconds = time.process_time() - start
        print(f"{name}: {len(texts):,} dialogues, {made:,} texts, {seconds:.1f} CPU s, {len(texts) / seconds:,.0f}/s")


if __name__ == "__main__":
    main()
