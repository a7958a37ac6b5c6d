"""OpenAI's API: `/v1/models`, `/v1/chat/completions`, `/v1/completions`.

A parameter that the server cannot honour is refused by name, unless its value has no effect.
"""
