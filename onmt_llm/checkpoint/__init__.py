"""Checkpoints: the directory format, loading into a `Transformer`, merging, and other toolkits' formats.

A checkpoint is a directory of safetensors, `config.yaml`, vocabulary, tokeniser and manifest. It holds a whole model,
or only an adapter or expansion of a base model. Read in this order:
- `store`: `Checkpoint` reads a directory lazily, `CheckpointWriter` writes it; `directory` finds it, has the
  manifest and decides what happens to damaged files; `files/` has the formats of files with tensors;
- `load`: from a checkpoint to a `Transformer`; `adapters` has what LoRA adapters and expansions need;
- `merge`, `average`, `extract`: operations on whole checkpoints;
- `convert`: other toolkits' models to checkpoints; `formats/` has the importers and exporters, and `export_guard` what
  an exporter can express.
"""
