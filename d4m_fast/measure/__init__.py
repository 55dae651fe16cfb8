"""Measuring and counting: time, memory, peak, operations, differences, and facts about GPUs.

`profile`, `certify`, `export` and `plan` use it; it imports the engine and nothing above. Start with `clock.py`.
"""
