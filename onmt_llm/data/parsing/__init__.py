"""From records (bytes) to examples (text with a loss mask).

`parser` reads lines, JSON objects and rows; `loss_mask` decides which parts of a conversation are trained;
`preferences` reads chosen and rejected answers; `alignment` reads word alignments.
"""
