"""Students trained on a set and on the arms beside it, and how these compare.

May import `runs`, `sources`, `flow`, `storage`, never `engine`. Start with `evaluate.py`.
"""
