"""Importers and exporters of other toolkits' models.

Each format maps its configuration to `ModelConfig` and its tensors to ours. Tensors are mapped by weight-name rules
(`rules`): a table of names with reversible operations, so one table serves both directions. An importer returns an
`ImportedModel` (`imported`), which `checkpoint.convert` streams into a checkpoint; an exporter applies the rules
backwards. Formats: `huggingface/`, `opennmt/` and `peft` (both directions), `gguf/` and `llama_meta` (import only).
`tokenizer_files` reads Hugging Face and SentencePiece tokenisers for all of them.
"""
