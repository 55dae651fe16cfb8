"""Evaluation of distilled sets from the request to everything that it says; the students themselves are `evaluation`'s.

May import `arms`, `report` and what is below them. Start with `opening.py`, then `examination.py`.
"""
