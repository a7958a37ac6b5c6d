"""The Modelfile that makes a model of Ollama out of a GGUF file.

Ollama renders prompts with a Go template, and knows no Jinja. A model without a template here gets the one that Ollama
finds most like the Jinja template in the file, or none. (https://docs.ollama.com/modelfile)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from onmt_llm.config.checkpoint import SamplingDefaults, SpecialTokens
from onmt_llm.text.codec import Codec
from onmt_llm.text.templates.builtin import AlpacaTemplate

LONGEST_CONTEXT = 8192
"""Ollama reserves memory for the whole context, so longer ones are left to the user."""


def modelfile(codec: Codec, gguf_name: str) -> str:
    """The content of the Modelfile of a language model.

    Args:
        codec: The text side of the model.
        gguf_name: Name of the GGUF file in the same directory.
    """
    name = codec.config.template
    in_go = _GO_TEMPLATES.get(name or "")
    lines = [f"FROM ./{gguf_name}"]
    if in_go is not None:
        lines += [*_COMMENTS.get(name or "", ()), f'TEMPLATE """{in_go(codec.config.specials)}"""']
    elif name is not None:
        lines += [
            "# The chat template is the Jinja text in the GGUF file. If Ollama does not recognise it, add a TEMPLATE."
        ]
    lines += [f"PARAMETER stop {_quoted(text)}" for text in [*codec.stop_tokens, *codec.stop]]
    lines += [
        f"PARAMETER num_ctx {min(codec.config.model.max_position, LONGEST_CONTEXT)}",
        *_sampling(codec.config.sampling),
    ]
    return "\n".join(lines) + "\n"


def _sampling(sampling: SamplingDefaults) -> Iterator[str]:
    """How answers are sampled; what the model does not say is as in transformers, whose defaults are not Ollama's."""
    if sampling.do_sample:
        yield f"PARAMETER temperature {sampling.temperature or 1:g}"
        yield f"PARAMETER top_k {50 if sampling.top_k is None else sampling.top_k}"
        yield f"PARAMETER top_p {1 if sampling.top_p is None else sampling.top_p:g}"
    else:
        yield "# Greedy search, as the other programs of onmt_llm do by default."
        yield "PARAMETER temperature 0"
    yield f"PARAMETER repeat_penalty {sampling.repetition_penalty or 1:g}"


def _quoted(text: str) -> str:
    """A value in quotes, in which nothing is escaped."""
    return f'"""{text}"""' if "\n" in text or '"' in text else f'"{text}"'


def _alpaca(specials: SpecialTokens) -> str:
    user, answer = AlpacaTemplate.INSTRUCTION, AlpacaTemplate.RESPONSE
    return (
        f"{{{{ if .System }}}}{{{{ .System }}}}{{{{ else }}}}{AlpacaTemplate.PREAMBLE}{{{{ end }}}}"
        f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{user}{{{{ .Content }}}}'
        f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ .Content }}}}{{{{ end }}}}{{{{ end }}}}{answer}'
    )


def _chatml(specials: SpecialTokens) -> str:
    return "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"


def _llama3(specials: SpecialTokens) -> str:
    return (
        "{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def _llama2(specials: SpecialTokens) -> str:
    bos, eos = specials.bos or "<s>", specials.eos or "</s>"
    return (
        '{{ $first := true }}{{ range .Messages }}{{ if eq .Role "user" }}'
        f"{{{{ if not $first }}}}{bos}{{{{ end }}}}[INST] "
        "{{ if and $first $.System }}<<SYS>>\n{{ $.System }}\n<</SYS>>\n\n{{ end }}{{ .Content }} [/INST]"
        f'{{{{ $first = false }}}}{{{{ else if eq .Role "assistant" }}}} {{{{ .Content }}}} {eos}{{{{ end }}}}'
        "{{ end }}"
    )


_GO_TEMPLATES: Mapping[str, Callable[[SpecialTokens], str]] = {
    "alpaca": _alpaca,
    "vicuna": _alpaca,
    "chatml": _chatml,
    "llama2": _llama2,
    "llama3": _llama3,
}
"""The built-in templates in Go's syntax, without the token that begins a text: the tokeniser in the file adds it."""
_COMMENTS = dict.fromkeys(
    ("llama2", "llama3"),
    ("# Go templates cannot remove the white space around a message, which the model was trained without.",),
)
