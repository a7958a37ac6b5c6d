"""The chat page: a Gradio app around a `Responder`.

The page holds no model. The conversation of each visitor is a list of messages in their own Gradio session, with the
raw text that was typed and generated; the page shows an escaped copy.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from onmt_llm.chat.escaping import escape_markdown
from onmt_llm.errors import ConfigError, OnmtLlmError
from onmt_llm.generate.session import Reply
from onmt_llm.log import logger
from onmt_llm.optional import require
from onmt_llm.text.templates.message import Message

UPDATE_SECONDS = 0.05
"""Minimum time between two updates of a page: more often, browsers would lag."""
WAITING_VISITORS = 64
LOOPBACK = ("127.0.0.1", "localhost", "::1")

CSS = """
.gradio-container { width: 100% !important; max-width: 54rem !important; margin: 0 auto !important; }
.gradio-container .main { max-width: none; padding: 0.75rem 1rem; }
#title h1 { margin: 0; font-size: 1.5rem; }
#title p, #status p { margin: 0; font-size: 0.875rem; opacity: 0.75; }
#status { min-height: 1.375rem; }
#conversation { min-height: 16rem; height: calc(100vh - 15.5rem) !important; }
#entry { align-items: flex-end; flex-wrap: nowrap; position: sticky; bottom: 0; padding-bottom: 0.5rem;
  background: var(--body-background-fill); z-index: 1; }
#message { min-width: 0 !important; }
#entry button { min-width: 5rem !important; flex: 0 0 auto !important; }
@media (max-width: 30rem) {
  #entry { flex-wrap: wrap !important; }
  #message { flex: 1 1 100% !important; }
  #entry button { flex: 1 1 auto !important; }
  #conversation { height: calc(100dvh - 19.5rem) !important; }
}
/* hide the "Error" that Gradio lays over the conversation; its error message says more */
.gradio-container .wrap:has(> .error) { display: none !important; }
/* only our own Clear also stops the engine */
#conversation button[aria-label="Clear"] { display: none !important; }
footer { display: none !important; }
"""

History = list[dict[str, str]]


class Responder(Protocol):
    """Answers conversations: a `ChatSession`, or in tests a script."""

    @property
    def max_context_length(self) -> int: ...

    def respond(self, messages: Sequence[Message], *, should_stop: Callable[[], bool]) -> Reply:
        """Answer the last of `messages`.

        Raises:
            OnmtLlmError: With a message for the visitor, here or while iterating over the answer.
        """
        ...


def build_app(responder: Responder, *, title: str = "Chat", subtitle: str = "") -> Any:
    """Build the page, to be served by `launch` or mounted elsewhere.

    Args:
        responder: Answers conversations, one visitor at a time; the others wait in a queue.
        title: Heading of the page.
        subtitle: A line below the heading, e.g. about the model.

    Returns:
        A `gradio.Blocks` with its queue.
    """
    gr = _gradio()
    with gr.Blocks(title=title, fill_height=True, analytics_enabled=False) as app:
        gr.Markdown(f"# {escape_markdown(title)}\n{escape_markdown(subtitle)}", elem_id="title")
        shown = gr.Chatbot(
            label="Conversation",
            elem_id="conversation",
            show_label=False,
            buttons=[],  # the copy buttons would copy the escaped text
            placeholder="Type a message below to start.",
        )
        status = gr.Markdown(elem_id="status")
        with gr.Row(elem_id="entry"):
            box = gr.Textbox(label="Your message", lines=1, max_lines=8, autofocus=True, scale=8, elem_id="message")
            send = gr.Button("Send", variant="primary", scale=1, min_width=96, elem_id="send")
            stop = gr.Button("Stop", variant="stop", scale=1, min_width=96, visible=False, elem_id="stop")
            clear = gr.Button("Clear", scale=1, min_width=96, elem_id="clear")
        history = gr.State([])
        page = [shown, history, box, status, send, stop]

        def answer(text: str, past: History) -> Iterator[tuple[Any, ...]]:
            yield from _answer(gr, responder, text, past)

        def stopped(past: History) -> tuple[Any, ...]:
            return _after_stop(gr, past)

        def cleared() -> tuple[Any, ...]:
            return _page(gr, [], box="")

        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        answering = gr.on([box.submit, send.click], answer, [box, history], page, **private)
        stop.click(stopped, [history], page, cancels=[answering], queue=False, **private)
        gr.on([clear.click, shown.clear], cleared, None, page, cancels=[answering], queue=False, **private)
    return app.queue(max_size=WAITING_VISITORS, default_concurrency_limit=1)


def check_server(server_name: str, server_port: int) -> None:
    """Check, before a model is loaded, that `launch` can serve the page.

    Raises:
        ConfigError: The address or port is not available, or the environment makes Gradio unsafe.
        UnsupportedError: Gradio is not installed.
    """
    _gradio()
    if os.environ.get("GRADIO_VIBE_MODE"):
        raise ConfigError("GRADIO_VIBE_MODE must not be set: it lets every visitor run code on this machine.")
    family = socket.AF_INET6 if ":" in server_name else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((server_name, server_port))
    except OSError as error:
        raise ConfigError(
            f"The page must be able to listen on {server_name}, port {server_port}, but cannot: "
            f"{error.strerror or error}.",
            hint="choose another -server_port",
        ) from error
    if server_name not in LOOPBACK:
        logger.warning("The chat listens on %s: everyone who can reach this machine can use it.", server_name)


def launch(app: Any, *, server_name: str = "127.0.0.1", server_port: int = 6006) -> None:
    """Serve the page until the process is interrupted, without a public link and without external requests.

    Args:
        app: The app of `build_app`.
        server_name: Address to listen on.
        server_port: Port to listen on.
    """
    gr = _gradio()
    fonts = ["ui-sans-serif", "system-ui", "Noto Sans", "sans-serif"]
    theme = gr.themes.Default(primary_hue="indigo", font=fonts, font_mono=["ui-monospace", "Consolas", "monospace"])
    logger.info("The chat is at http://%s:%d (Ctrl+C stops it).", server_name, server_port)
    app.launch(
        server_name=server_name,
        server_port=server_port,
        share=False,
        ssr_mode=False,
        quiet=True,
        footer_links=[],
        max_file_size=0,
        enable_monitoring=False,
        theme=theme,
        css=CSS,
    )


def _gradio() -> Any:
    # no telemetry and no requests to the hub; gradio reads these variables when it is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return require("gradio", "the chat page")


def _answer(gr: Any, responder: Responder, text: str, past: History) -> Iterator[tuple[Any, ...]]:
    """Yield the page after each part of the answer; an error restores the page, with the text still in its box."""
    if not text.strip():
        yield _page(gr, past, box=text)
        return
    asked = [*past, {"role": "user", "content": text}]
    stop = threading.Event()
    try:
        reply = responder.respond([Message(m["role"], m["content"]) for m in asked], should_stop=stop.is_set)
        yield from _stream(gr, responder, reply, asked)
    except Exception as error:
        yield _page(gr, past, box=text)
        raise gr.Error(_sentence(error), duration=None, print_exception=False) from error
    finally:
        stop.set()


def _stream(gr: Any, responder: Responder, reply: Reply, asked: History) -> Iterator[tuple[Any, ...]]:
    answer, tokens, finish = "", 0, None
    begun = last = time.monotonic()
    yield _page(gr, [*asked, _said("")], status=_status(reply, responder), busy=True)
    for delta in reply.deltas:
        answer, tokens, finish = answer + delta.text, tokens + delta.tokens, delta.finish_reason
        if delta.text and time.monotonic() - last >= UPDATE_SECONDS:
            last = time.monotonic()
            yield _page(gr, [*asked, _said(answer)], status=_status(reply, responder, tokens), busy=True)
    status = _status(reply, responder, tokens, time.monotonic() - begun)
    if finish == "length":
        status += " · truncated at max_length"
    yield _page(gr, [*asked, _said(answer)], status=status)


def _after_stop(gr: Any, past: History) -> tuple[Any, ...]:
    """Keep the partial answer; if there is none yet, put the question back into the text box."""
    if past and past[-1] == _said(""):
        return _page(gr, past[:-2], box=past[-2]["content"], status="Stopped.")
    return _page(gr, past, status="Stopped; the partial answer is part of the conversation.")


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _page(
    gr: Any, history: History, *, box: str | None = None, status: str = "", busy: bool = False
) -> tuple[Any, ...]:
    """Values of the components: the conversation as shown, history, text box, status, the two buttons.

    Without `box` the text box is cleared when an answer starts, and then left unchanged.
    """
    # a list of parts, because Gradio would remove the indentation of a plain string
    shown = [{"role": m["role"], "content": [{"type": "text", "text": escape_markdown(m["content"])}]} for m in history]
    if box is None:
        box = "" if busy and history[-1] == _said("") else gr.skip()
    return shown, history, box, status, gr.Button(visible=not busy), gr.Button(visible=busy)


def _status(reply: Reply, responder: Responder, tokens: int = 0, seconds: float | None = None) -> str:
    parts = [f"Context: {reply.prompt_tokens + tokens} of {responder.max_context_length} tokens"]
    if seconds is not None and tokens:
        parts.append(f"{tokens} tokens in {seconds:.1f} s")
    if reply.left_out:
        parts.append(
            "the oldest round was left out"
            if reply.left_out == 1
            else f"the oldest {reply.left_out} rounds were left out"
        )
    return " · ".join(parts)


def _sentence(error: Exception) -> str:
    """The error as one line for the visitor; the log gets the traceback of an unexpected error."""
    if isinstance(error, OnmtLlmError):
        return error.message if error.hint is None else f"{error.message} ({error.hint})"
    logger.error("The answer failed.", exc_info=error)
    return f"The answer failed: {type(error).__name__}: {(str(error).splitlines() or ['no message'])[0][:200]}"
