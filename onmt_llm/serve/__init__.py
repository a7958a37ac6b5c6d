"""The server: models behind HTTP APIs, in one process.

`app` puts together the APIs (`openai`, `opennmt`, `libretranslate`), which share the models (`models`), the way of
answering (`service`, and `translation` for texts), limits, keys, metrics and the access log. `launch` runs the app and
handles signals.
"""
