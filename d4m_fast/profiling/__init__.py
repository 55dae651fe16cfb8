"""Images per second, memory and share of the peak of every stage, measured here.

May import `pipeline`, `measure` and what is below. Start with `session.py`.
"""
