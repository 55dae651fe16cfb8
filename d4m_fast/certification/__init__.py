"""Certification of a machine, run once by its owner: every engine compared and timed, in steps that are kept.

May import `export`, `measure`, `engine` and what is below. Start with `steps.py`.
"""
