"""Results of an evaluation as one page of HTML, which needs no network and no other file.

May import `evaluation`, `runs`, `sources`, `storage`. Start with `render.py`.
"""
