"""Import and export of OpenNMT-py v3 checkpoints.

`options` derives the architecture from the pickled options; `rules` maps the tensors in both directions; `read` opens a
model or LoRA file, `write` exports one; `vocab` renames special tokens for the export.
"""
