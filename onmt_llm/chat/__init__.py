"""The chat app and the batch script that goes with it: clients of `onmt_llm.generate`, built on Gradio."""
