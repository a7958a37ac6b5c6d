"""The chat page over a scripted responder, for `test_chat_browser.py`: `python scripted_chat.py PORT`.

The answer depends on the question alone: "slow ..." takes its time, "fail ..." fails, "forget ..." leaves rounds out;
everything else is echoed word by word, with the number of messages in the conversation before it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence

from onmt_llm.chat.app import build_app, check_server, launch
from onmt_llm.errors import DataError
from onmt_llm.generate.engine import Delta
from onmt_llm.generate.session import Reply
from onmt_llm.text.templates.message import Message

FAST, SLOW = 0.06, 0.1


class ScriptedResponder:
    max_context_length = 4096

    def respond(self, messages: Sequence[Message], *, should_stop: Callable[[], bool]) -> Reply:
        question = messages[-1].content
        if question.startswith("fail"):
            raise DataError("The message must leave room for the answer.", hint="shorten the message")
        words = [f"{len(messages)}:", *(question.split(" ") if not question.startswith("slow") else ["tick"] * 300)]
        deltas = self._deltas(words, SLOW if question.startswith("slow") else FAST, should_stop, name=question)
        return Reply(10 * len(messages), 2 if question.startswith("forget") else 0, deltas)

    def _deltas(
        self, words: Sequence[str], seconds: float, should_stop: Callable[[], bool], *, name: str
    ) -> Iterator[Delta]:
        try:
            for word in words:
                if should_stop():
                    break
                time.sleep(seconds)
                yield Delta(word + " ", 1)
            yield Delta("", 0, "stop")
        finally:
            print(f"engine free after: {name}", flush=True)


if __name__ == "__main__":
    port = int(sys.argv[1])
    check_server("127.0.0.1", port)
    launch(
        build_app(ScriptedResponder(), title="Chat with a script", subtitle="Answered from a test."), server_port=port
    )
