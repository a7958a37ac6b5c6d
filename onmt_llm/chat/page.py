"""The chat page: its components, and which action each of them starts.

The page holds no conversation. The browser stores them, and the component `store` carries the one that is shown to the
server and back, with the raw texts; the chats show an escaped copy. `page.js` runs in that component.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from onmt_llm.chat.actions import ChatActions
from onmt_llm.chat.answering import RunningAnswer, Visitors
from onmt_llm.chat.conversation import Conversation
from onmt_llm.chat.launch import import_gradio
from onmt_llm.chat.model import ChatSettings, Responder
from onmt_llm.chat.view import View, sentence
from onmt_llm.errors import DataError

EXAMPLES = (
    "Explain what a glacier is in two sentences.",
    "Translate into French: The weather is nice today.",
    "Write a Python function that reverses a string.",
    "Give me three ideas for a rainy afternoon.",
)
MATHS = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
"""Not `$...$`: prices are more frequent than formulas."""

HEADER = """<header><div><h1>{title}</h1><p>{subtitle}</p></div>
<button type="button" class="plain" data-command="new">New</button></header>"""
ATTACH = """<button type="button" class="icon" data-command="attach" aria-label="Attach a text file"
 title="Attach a text file"><svg viewBox="0 0 24 24" aria-hidden="true">
<path d="M20 11.5 12 19.5a5 5 0 0 1-7-7L13.5 4a3.3 3.3 0 0 1 4.7 4.7L9.7 17a1.7 1.7 0 0 1-2.4-2.4L15 7"/>
</svg></button>"""

Views = Callable[[RunningAnswer, Conversation, ChatSettings], AsyncIterator[View]]


@dataclass(frozen=True)
class Components:
    """The components of the page that actions read or change; in this order they are the outputs of each action."""

    chats: Sequence[Any]
    statuses: Sequence[Any]
    store: Any
    box: Any
    send: Any
    stop: Any
    system: Any
    settings: Sequence[Any]

    @property
    def outputs(self) -> list[Any]:
        return [*self.chats, *self.statuses, self.store, self.box, self.send, self.stop, self.system]


def build_app(
    responders: Sequence[Responder], *, title: str = "Chat", subtitle: str = "", system: str = "",
) -> Any:  # fmt: skip
    """Build the page, to be served by `launch` or mounted elsewhere.

    Args:
        responders: The model that answers; or two, whose answers are shown side by side.
        title: Heading of the page.
        subtitle: A line below the heading, e.g. about the model.
        system: System prompt of new conversations.

    Returns:
        A `gradio.Blocks` with its queue.
    """
    gr = import_gradio()
    with gr.Blocks(title=title, fill_height=True, analytics_enabled=False) as app:
        page = _components(gr, responders, title=title, subtitle=subtitle, system=system)
        visitors = Visitors()
        _connect(gr, app, page, ChatActions(responders, visitors), visitors, responders[0].settings)
    # answers wait in the scheduler, which has a bound, not in the queue of Gradio
    return app.queue(max_size=None, default_concurrency_limit=None)


def _components(gr: Any, responders: Sequence[Responder], *, title: str, subtitle: str, system: str) -> Components:
    here = Path(__file__).parent
    with gr.Sidebar(position="left", open=False, width=280, elem_id="history"):  # page.js opens it on a wide window
        _html(gr, (here / "history.html").read_text("utf-8"), elem_id="conversations")
    with gr.Sidebar(position="right", open=False, width=300, elem_id="settings"):
        system_box, settings = _settings(gr, responders[0].settings, system, responders[0].max_context_length)
    _html(gr, HEADER.format(title=escape(title), subtitle=escape(subtitle)), elem_id="title")
    chats, statuses = [], []
    with gr.Row(elem_id="columns"):
        for number, responder in enumerate(responders):
            with gr.Column(min_width=280):
                chats.append(_chat(gr, responder, number, compared=len(responders) > 1))
                statuses.append(gr.HTML(js_on_load=None, apply_default_css=False, elem_classes="status"))
    with gr.Row(elem_id="entry"):
        _html(gr, ATTACH, elem_id="attach")
        box = gr.Textbox(
            label="Your message", placeholder="Ask something (Shift+Enter: new line)", lines=1, max_lines=8,
            autofocus=True, scale=8, elem_id="message",
        )  # fmt: skip
        send = gr.Button("Send", variant="primary", scale=1, min_width=96, elem_id="send")
        stop = gr.Button("Stop", variant="stop", scale=1, min_width=96, visible=False, elem_id="stop")
    store = gr.HTML(
        {"conversation": replace(Conversation(), system=system).to_json(), "busy": False, "number": 0},
        html_template="",
        js_on_load=(here / "page.js").read_text("utf-8"),
        elem_id="store",
    )
    return Components(chats, statuses, store, box, send, stop, system_box, settings)


def _html(gr: Any, html: str, *, elem_id: str) -> None:
    """A fixed part of the page; the commands of its buttons are in `page.js`."""
    gr.HTML(html, js_on_load=None, apply_default_css=False, elem_id=elem_id)


def _chat(gr: Any, responder: Responder, number: int, *, compared: bool) -> Any:
    return gr.Chatbot(
        label=responder.name if compared else "Conversation",
        show_label=compared,
        elem_id=f"conversation-{number}",
        elem_classes="conversation",
        buttons=[],  # the copy buttons would copy the escaped text
        feedback_options=None,
        latex_delimiters=MATHS,
        layout="bubble",
        placeholder="**How can I help?**",
        examples=[{"text": text} for text in EXAMPLES] if number == 0 else None,
    )


def _settings(gr: Any, defaults: ChatSettings, system: str, context: int) -> tuple[Any, list[Any]]:
    """The components for the system prompt, and for the fields of `ChatSettings` in order."""
    _html(gr, "<h2>Settings</h2>", elem_id="settings-title")
    system_box = gr.Textbox(
        system, label="System prompt", lines=3, max_lines=8, info="Applies from the next answer on."
    )
    return system_box, [
        gr.Slider(0, 2, defaults.temperature, step=0.05, label="Temperature", info="0 = always the likeliest token"),
        gr.Slider(0, 1, defaults.top_p, step=0.01, label="Top-p", info="1 = all tokens"),
        gr.Slider(0, max(100, defaults.top_k), defaults.top_k, step=1, label="Top-k", info="1 = no sampling, 0 = all"),
        gr.Slider(1, context - 1, defaults.max_tokens, step=1, label="Maximum tokens of an answer"),
        gr.Textbox(
            "" if defaults.seed is None else str(defaults.seed),
            label="Seed",
            info="empty = a new one for each answer",
            max_lines=1,
        ),
    ]


def _connect(
    gr: Any, app: Any, page: Components, actions: ChatActions, visitors: Visitors, defaults: ChatSettings
) -> None:
    async def run(request: Any, state: Any, values: Sequence[Any], views: Views) -> AsyncIterator[tuple[Any, ...]]:
        async with visitors.begin(request.session_hash) as answer:
            try:
                system, *settings = values
                past = replace(actions.read((state or {}).get("conversation")), system=system or "")
                async for view in views(answer, past, read_settings(*settings)):
                    if answer.abandoned:
                        # Gradio sends the last element again when an event is complete
                        yield tuple(gr.skip() for _ in page.outputs)
                        break
                    yield view.values(gr, answer.number)
            except Exception as error:
                raise gr.Error(sentence(error), duration=None, print_exception=False) from error

    async def send(request: Any, state: Any, text: str, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        async for shown in run(request, state, values, lambda answer, past, s: actions.send(answer, past, text, s)):
            yield shown

    async def example(request: Any, event: Any, state: Any, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        text = event.value["text"]
        async for shown in run(request, state, values, lambda answer, past, s: actions.send(answer, past, text, s)):
            yield shown

    async def act(request: Any, event: Any, state: Any, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        done: Mapping[str, Any] = event._data or {}
        async for shown in run(request, state, values, lambda answer, past, s: actions.act(answer, past, done, s)):
            yield shown

    async def stop(request: Any) -> None:
        visitors.stop(request.session_hash)

    async def leave(request: Any) -> None:
        visitors.leave(request.session_hash)

    for handler in (send, example, act, stop, leave):
        handler.__annotations__["request"] = gr.Request  # Gradio passes these by their type
    example.__annotations__["event"], act.__annotations__["event"] = gr.SelectData, gr.EventData
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    values = [page.system, *page.settings]
    several = {"trigger_mode": "multiple"}  # the server ends what is running; page.js sends nothing meanwhile
    gr.on([page.box.submit, page.send.click], send, [page.store, page.box, *values], page.outputs, **several, **private)
    page.chats[0].example_select(example, [page.store, *values], page.outputs, **private)
    page.store.submit(act, [page.store, *values], page.outputs, **several, **private)
    page.stop.click(stop, None, None, queue=False, **private)
    app.unload(leave)
    gr.api(_endpoint(gr, actions, defaults, page.system.value), api_name="chat", concurrency_limit=None)


def _endpoint(gr: Any, actions: ChatActions, defaults: ChatSettings, system: str) -> Callable[..., AsyncIterator[str]]:
    """The function that programs call."""

    async def chat(
        message: str,
        history: list[dict[str, str]] = [],  # noqa: B006 (Gradio shows the default to programs, and nothing changes it)
        system_prompt: str = system,
        temperature: float = defaults.temperature,
        top_p: float = defaults.top_p,
        top_k: int = defaults.top_k,
        max_tokens: int = defaults.max_tokens,
        seed: int = -1 if defaults.seed is None else defaults.seed,
    ) -> AsyncIterator[str]:
        """Answer a message after a history of messages, `{"role": "user" or "assistant", "content": ...}` in turn.

        The answer grows: each element is its text so far. A seed of -1 means a new one for each answer.
        """
        settings = ChatSettings(temperature, top_p, top_k, max_tokens, None if seed < 0 else seed)
        try:
            async for text in actions.reply(message, history, system_prompt, settings):
                yield text
        except Exception as error:
            raise gr.Error(sentence(error), print_exception=False) from error

    chat.__annotations__["return"] = str  # Gradio documents the type of an element
    return chat


def read_settings(temperature: float, top_p: float, top_k: float, max_tokens: float, seed: str) -> ChatSettings:
    """The settings of the page's components.

    Raises:
        DataError: The seed is no number.
    """
    seed = seed.strip()
    if seed and not seed.isdecimal():
        raise DataError(f"The seed must be a whole number or empty, but is '{seed}'.")
    return ChatSettings(temperature, top_p, int(top_k), int(max_tokens), int(seed) if seed else None)
