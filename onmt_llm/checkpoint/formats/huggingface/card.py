"""How a model is used with transformers and peft, for the model card."""

from __future__ import annotations

from onmt_llm.checkpoint.card import CardFormat
from onmt_llm.config.checkpoint import CheckpointConfig
from onmt_llm.text.codec import Codec

_LOADED = """
from transformers import {model}, AutoTokenizer

folder = "{folder}"  # this folder, or its name on the Hugging Face Hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {model}.from_pretrained(folder)
"""
_ADAPTED = """
from peft import PeftModel
from transformers import {model}, AutoTokenizer

base = "{base}"
folder = "{folder}"  # this folder, or its name on the Hugging Face Hub
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained({model}.from_pretrained(base), folder)
"""
_CHAT = """
messages = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
"""
_TEXT = """
inputs = tokenizer("Hello", return_tensors="pt")
"""
_LM_ANSWER = """
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
_ANSWER = """
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""


def transformers_card(codec: Codec) -> CardFormat:
    """The format of a folder for transformers; without a tokeniser there is no example."""
    is_chat = codec.template is not None and codec.template.jinja is not None
    usage = "" if codec.config.tokenizer.kind == "none" else _usage(_LOADED, codec.config, is_chat=is_chat)
    return CardFormat("for transformers", "transformers", usage)


def peft_card(config: CheckpointConfig, base: str | None) -> CardFormat:
    """The format of an adapter for peft.

    Args:
        config: The adapter's configuration.
        base: The base that peft loads; None = unknown, so there is no example.
    """
    usage = _usage(_ADAPTED.replace("{base}", base), config, is_chat=False) if base else ""
    return CardFormat("for peft", "peft", usage, relation="adapter")


def _usage(start: str, config: CheckpointConfig, *, is_chat: bool) -> str:
    decoder_only = config.model.is_decoder_only
    model = "AutoModelForCausalLM" if decoder_only else "AutoModelForSeq2SeqLM"
    parts = (start.replace("{model}", model), _CHAT if is_chat else _TEXT, _LM_ANSWER if decoder_only else _ANSWER)
    return "".join(part.lstrip("\n") for part in parts)
