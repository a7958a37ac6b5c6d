"""Text and tokens: vocabularies, tokenisers, chat templates, and the `Codec` of a model. Never imports torch.

Inside the package text has real newlines; `placeholders` turns it into lines of a file and back. A conversation is a
list of messages; a chat template (`templates/`) lays it out as segments (`segment`), each of them text or control
tokens, covered by the loss or not. A tokeniser (`tokenizers/`) turns the text of segments into tokens, a `Vocab`
(`vocab`) turns tokens into ids, and a streaming decoder (`decoding`) turns tokens back into text. No text that a user
wrote ever becomes a control token. A `Codec` (`codec`) is all of this for one checkpoint.
"""
