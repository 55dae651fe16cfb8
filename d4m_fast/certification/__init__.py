"""What a GPU owner runs once: every engine of a machine compared and timed, in steps that are kept.

May import `export`, `measure`, `engine` and what is below. Start with `steps.py`.
"""
