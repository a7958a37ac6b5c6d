"""The translator page: source and target, languages, alternatives, and the words that belong together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from onmt_llm.chat.launch import import_gradio
from onmt_llm.chat.translation_model import AlignedLine, ShownWord, TranslatedText, TranslationModel
from onmt_llm.chat.view import sentence
from onmt_llm.errors import OnmtLlmError

MOST_ALTERNATIVES = 5

CSS = """<style>
.gradio-container:has(#translator) { max-width: 72rem !important; margin: 0 auto !important; }
#translator h1 { margin: 0; font-size: 1.5rem; }
#translator p, #translated { margin: 0; min-height: 1.375rem; font-size: 0.875rem;
  color: var(--body-text-color-subdued); }
#languages, #translate-buttons { align-items: end; }
#languages button { flex: 0 0 auto; min-width: 3rem; }
#alternatives ol { margin: 0; padding-left: 1.5rem; list-style: decimal; }
#alternatives li { white-space: pre-wrap; margin: 0.25rem 0; }
#alignment .pair { padding: 0.5rem 0; border-top: 1px solid var(--border-color-primary); line-height: 1.9; }
#alignment .side { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
#alignment button { all: unset; cursor: default; }
#alignment :is(button, span) { padding: 0.125rem; border-radius: 0.25rem; }
#alignment button:is(:hover, :focus-visible) { outline: 2px solid var(--color-accent); }
#alignment .lit { background: var(--body-text-color); color: var(--body-background-fill); }
@media (max-width: 30rem) {
  #texts { flex-direction: column; }
  #languages { flex-wrap: wrap; }
}
</style>"""
LIGHTING = """
const light = (event, lit) => {
  const word = event.target.closest('button[data-sources]');
  if (!word) return;
  const pair = word.closest('.pair');
  for (const number of word.dataset.sources.split(' ').filter(Boolean))
    pair.querySelector(`span[data-word="${number}"]`)?.classList.toggle('lit', lit);
};
for (const [name, lit] of [['pointerover', true], ['pointerout', false], ['focusin', true], ['focusout', false]])
  element.addEventListener(name, (event) => light(event, lit));
"""
"""Lights the words of the source while a word of the translation is pointed at or focused."""


def build_translator(model: TranslationModel, *, title: str = "Translator", subtitle: str = "") -> Any:
    """Build the page, to be served by `launch` or mounted elsewhere.

    It has one endpoint for programs, `/translate`: the text, the codes of its language and of the language to translate
    into ("" = the model's defaults), and the number of translations; it returns a list of translations, best first.

    Args:
        model: Translates.
        title: Heading of the page.
        subtitle: A line below the heading.

    Returns:
        A `gradio.Blocks` with its queue.
    """
    gr = import_gradio()
    fixed: dict[str, Any] = {"js_on_load": None, "apply_default_css": False}
    with gr.Blocks(title=title, analytics_enabled=False) as app:
        gr.HTML(f"{CSS}<h1>{escape(title)}</h1><p>{escape(subtitle)}</p>", elem_id="translator", **fixed)
        src, tgt = _languages(gr, model)
        with gr.Row(elem_id="texts"):
            box = gr.Textbox(
                label="Text", placeholder="Text to translate", lines=8, max_lines=20, autofocus=True, min_width=280,
                info="Shift+Enter translates.",
            )  # fmt: skip
            target = gr.Textbox(
                label="Translation", lines=8, max_lines=20, interactive=False, min_width=280,
                info="Line by line, as it arrives.",
            )  # fmt: skip
        with gr.Row(elem_id="translate-buttons"):
            count = gr.Slider(1, MOST_ALTERNATIVES, 1, step=1, label="Number of translations", min_width=200)
            translate = gr.Button("Translate", variant="primary", min_width=120)
            stop = gr.Button("Stop", variant="stop", min_width=120, visible=False)
        status = gr.HTML(elem_id="translated", **fixed)
        others = gr.HTML(elem_id="alternatives", **fixed)
        words = gr.HTML(elem_id="alignment", js_on_load=LIGHTING, apply_default_css=False)
        shown = [target, status, others, words, translate, stop]

        def show(text: str, source: str, into: str, number: int) -> Iterator[tuple[Any, ...]]:
            yield from _show(gr, model, text, source, into, number)

        def stopped() -> tuple[Any, ...]:
            return gr.Button(visible=True), gr.Button(visible=False), "Stopped."

        def of_programs(
            text: str, source_language: str = "", target_language: str = "", translations: int = 1
        ) -> list[str]:
            return translations_of(gr, model, text, source_language, target_language, translations)

        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        event = gr.on([translate.click, box.submit], show, [box, src, tgt, count], shown, **private)
        stop.click(stopped, None, [translate, stop, status], cancels=[event], queue=False, **private)
        gr.api(of_programs, api_name="translate")
    # texts wait in the scheduler, which has a bound, not in the queue of Gradio
    return app.queue(max_size=None, default_concurrency_limit=None)


def _languages(gr: Any, model: TranslationModel) -> tuple[Any, Any]:
    """The components with the codes of the two languages, which are hidden for a model of one pair."""
    if not model.languages:
        return gr.State(""), gr.State("")
    with gr.Row(elem_id="languages"):
        src = gr.Dropdown(model.languages, value=model.defaults[0], label="From", min_width=120, filterable=True)
        swap = gr.Button("⇄ Swap", elem_id="swap", min_width=96)
        tgt = gr.Dropdown(model.languages, value=model.defaults[1], label="Into", min_width=120, filterable=True)
    swap.click(
        lambda one, other: (other, one), [src, tgt], [src, tgt], queue=False, api_visibility="private",
        show_progress="hidden",
    )  # fmt: skip
    return src, tgt


def _show(gr: Any, model: TranslationModel, text: str, src: str, tgt: str, count: int) -> Iterator[tuple[Any, ...]]:
    """Yield the page as the translation grows; an error restores the buttons."""
    busy = gr.Button(visible=False), gr.Button(visible=True)
    idle = gr.Button(visible=True), gr.Button(visible=False)
    if not text.strip():
        yield "", "Type or paste a text first.", "", "", *idle
        return
    yield "", "Translating …", "", "", *busy
    try:
        for found in model.translate(text, src=src, tgt=tgt, alternatives=int(count)):
            is_done = found.done == found.lines
            best = found.texts[0] if found.texts else ""
            yield (
                best,
                _status(found),
                alternatives_html(found.texts),
                alignment_html(found.aligned),
                *(idle if is_done else busy),
            )
    except Exception as error:
        yield gr.skip(), "", gr.skip(), gr.skip(), *idle
        raise gr.Error(sentence(error), duration=None, print_exception=False) from error


def translations_of(gr: Any, model: TranslationModel, text: str, src: str, tgt: str, count: int) -> list[str]:
    """The translations of a text, best first, for programs."""
    try:
        if not 1 <= count <= MOST_ALTERNATIVES:
            raise OnmtLlmError(f"translations must be 1 to {MOST_ALTERNATIVES}, but is {count}.")
        texts: Sequence[str] = []
        for found in model.translate(text, src=src, tgt=tgt, alternatives=count):
            texts = found.texts
        return list(texts)
    except Exception as error:
        raise gr.Error(sentence(error), print_exception=False) from error


def _status(found: TranslatedText) -> str:
    if found.waiting:
        return f"Waiting for {found.waiting} other {'text' if found.waiting == 1 else 'texts'} …"
    if found.done < found.lines:
        return f"Translating … {found.done} of {found.lines} lines"
    return ""


def alternatives_html(texts: Sequence[str]) -> str:
    """The list of all translations; empty if there is only one."""
    if len(texts) < 2:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<h2>Translations, best first</h2><ol>{items}</ol>"


def alignment_html(lines: Sequence[AlignedLine]) -> str:
    """The source and its translation; a button for each word of the translation names the words it comes from."""
    pairs = [line for line in lines if any(word.number is not None for word in line.target)]
    if not pairs:
        return ""
    shown = "".join(
        f'<div class="pair"><p class="side">{"".join(map(_source_word, line.source))}</p>'
        f'<p class="side">{"".join(_target_word(word, line.source) for word in line.target)}</p></div>'
        for line in pairs
    )
    return f"<h2>Word by word</h2><p>Point at a word of the translation to see where it comes from.</p>{shown}"


def _source_word(word: ShownWord) -> str:
    return escape(word.text) if word.number is None else f'<span data-word="{word.number}">{escape(word.text)}</span>'


def _target_word(word: ShownWord, source: Sequence[ShownWord]) -> str:
    if word.number is None:
        return escape(word.text)
    origins = " ".join(each.text for each in source if each.number in word.sources)
    label = f"{word.text}, from {origins}" if origins else f"{word.text}, from no word"
    numbers = " ".join(map(str, word.sources))
    return f'<button type="button" data-sources="{numbers}" aria-label="{escape(label)}">{escape(word.text)}</button>'
