"""Import and export of peft adapters (adapter_config.json and adapter_model.safetensors).

`layers` maps the layers of a transformers model to ours; `read` imports an adapter, `write` exports one.
"""
