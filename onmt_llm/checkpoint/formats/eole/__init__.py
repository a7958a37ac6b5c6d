"""eole's models: a folder with config.json, vocab.json and model.NN.safetensors.

Read `read` first: it opens a folder, with the architecture of `settings`, the weight-name rules of `rules` and the text
side of `text`.
"""
