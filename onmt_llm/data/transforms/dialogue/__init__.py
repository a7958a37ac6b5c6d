"""`dialogue` and `dialogue_chunk`: transcribed dialogues, in which a tag such as `[speaker001:]` precedes each turn.

`text` has the rules for tags, `names` the words of each language; `variants` and `windows` are the transforms.
"""

from onmt_llm.data.transforms.dialogue import variants, windows

__all__ = ["variants", "windows"]
