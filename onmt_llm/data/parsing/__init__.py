"""From records (bytes) to examples (text with a loss mask).

`parser` reads lines, JSON objects (`json_object`) and rows; `preferences` reads chosen and rejected answers;
`text_lines` reads the mask marker of a line; `alignment` reads word alignments.
"""
