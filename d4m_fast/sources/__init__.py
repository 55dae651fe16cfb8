"""Sources of images, classes and prompts: one file per format behind `records.Source`.

May import `storage`. Start with `dataset.py`, which opens any of them.
"""
