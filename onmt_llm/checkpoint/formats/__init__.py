"""Importers and exporters of other toolkits' models.

Each format maps its configuration to `ModelConfig` and its tensors to ours. Tensors are mapped by weight-name rules
(`rules`): tables of names (`names` has those that formats share) with reversible operations (`ops`), so one table
serves both directions. An importer returns an `ImportedModel` (`imported`), which `checkpoint.convert` streams into a
checkpoint; an exporter applies the rules backwards. Formats: `huggingface/`, `opennmt/` and `peft` (both directions),
`gguf/`, `eole/`, `params_json/` (Meta, Mistral, torchtune) and `litgpt` (import only); `foreign` names those that are
not read. `tokenizer_files` reads tokenisers for all of them.
"""
