"""Import and export of Hugging Face model directories.

`families/` holds a table for each family of architectures (Llama, Falcon, GPT-2 ...); `read` and `write` apply it
forwards and backwards, with the tokeniser files and the chat template.
"""
