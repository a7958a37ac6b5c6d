"""Import of GGUF files, llama.cpp's format.

`read` maps metadata and dequantised tensors to ours; `header` validates a file before the `gguf` package reads it;
`tokenizer` rebuilds the tokeniser stored in the file.
"""
