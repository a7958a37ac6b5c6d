"""The chat page over a scripted engine, for the browser tests: `python chat_server.py PORT DIRECTORY [FLAG ...]`.

Everything but the engine is real: page, scheduler, prompts, tokeniser of bytes. The answer depends on the question:
"slow ..." takes its time, "read ..." never gets beyond its prompt, "fail ..." fails, "say ..." says the rest of the
question at once, and everything else is echoed word by word, after the number of questions in the prompt. Flags:
`compare`, `password`, `small` (a context of 700 tokens), `one` (a queue of one).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from onmt_llm.chat.launch import check_server, launch
from onmt_llm.chat.model import ChatModel
from onmt_llm.chat.page import build_app
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import DataError
from onmt_llm.generate.engine import Delta
from onmt_llm.generate.scheduling.scheduler import Scheduler
from onmt_llm.generate.scheduling.worker import SequentialWorker
from onmt_llm.text.codec import Codec

FAST, SLOW = 0.08, 0.1


class ScriptedEngine:
    """Streams scripts; it logs when it is free again."""

    def __init__(self, codec: Codec, name: str = "") -> None:
        self.codec = codec
        self._name = name

    def for_languages(self, src: str = "", tgt: str = "") -> ScriptedEngine:
        return self

    def stream(
        self, prompt: Sequence[str], options: GenerationConfig, *, should_stop: Callable[[], bool] | None = None
    ) -> Iterator[Delta]:
        system, *rounds = self.codec.decode(prompt).split("### Instruction:\n")
        question, _, begun = rounds[-1].partition("\n\n### Response:\n")
        settings = f"temperature {options.random_sampling_temp}, seed {options.seed}, system {system.strip()!r}"
        print(f"asked: {question} with {settings}", flush=True)
        if question.startswith("fail"):
            raise DataError("The question must not fail.", hint="ask another")
        if question.startswith("say "):
            words, pause = [question[4:]], 0.0
        elif question.startswith("slow"):
            words, pause = ["tick"] * 300, SLOW
        else:
            words, pause = [f"{self._name}{len(rounds)}:", *question.split(" ")], FAST
        words = words[len(begun.split()) :]
        try:
            while question.startswith("read") and not (should_stop is not None and should_stop()):
                time.sleep(SLOW)  # as long as a piece of a prompt may take
            for count, word in enumerate(words):
                if should_stop is not None and should_stop():
                    yield Delta("", 0, "stopped")
                    return
                if count == options.max_length:
                    yield Delta("", 0, "length")
                    return
                time.sleep(pause)
                yield Delta((" " if count or begun else "") + word, 1)
            yield Delta("", 0, "stop")
        finally:
            print(f"engine free after: {question}", flush=True)


def main(port: int, directory: Path, flags: Sequence[str]) -> None:
    codec = Codec.open(tiny.write_chat_model(directory / "model"))
    options = GenerationConfig(max_length=512 if "small" not in flags else 400)
    names = ["left", "right"] if "compare" in flags else ["script"]
    models = [
        ChatModel(
            Scheduler(engine, max_queue=1 if "one" in flags else 64, worker=SequentialWorker(engine)),
            options,
            max_context_length=4096 if "small" not in flags else 700,
            name=name,
        )
        for name in names
        for engine in [ScriptedEngine(codec, f"{name} " if len(names) > 1 else "")]  # type: ignore[arg-type]
    ]
    check_server("127.0.0.1", port)
    app = build_app(models, title="Chat with a script", subtitle="Answered from a test.")
    launch(app, server_port=port, users={"ann": "secret"} if "password" in flags else None)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
