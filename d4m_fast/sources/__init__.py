"""Where images, classes and prompts come from: one file per format behind `records.Source`.

May import `storage`. Start with `dataset.py`, which opens any of them.
"""
