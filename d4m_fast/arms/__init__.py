"""Training sets that stand beside the distilled one, so that every number says which part of the pipeline gains.

May import `engine`, `evaluation`, `runs`, `sources` and what is below them. Start with `names.py`, then `build.py`.
"""
