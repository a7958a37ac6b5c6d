"""Chat templates: the layout in which a model was trained to see a conversation.

A `Template` (`message`) renders messages into segments: text, and control tokens. `builtin` has the built-in templates
by name and opens Jinja files (`jinja/`); A template that has no control tokens (alpaca)
ends an answer by a stop string.
"""
