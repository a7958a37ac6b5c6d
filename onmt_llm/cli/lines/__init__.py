"""The files of `onmt_llm_translate`: lines are read in chunks, answered, and added to an output that can be resumed.

`chunks` reads the input, `answers` makes prompts of the lines and answers them, `output` formats and counts the
answers, `partial_output` writes them as they come, and `origin` tells whether an unfinished output may be continued.
"""
