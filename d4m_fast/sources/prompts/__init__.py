"""Files of class prompts, in the forms that label files are found in: their keys, and the order of their prompts.

May import what `sources` may. Start with `file.py`.
"""
