"""The commands, one file each: options -> configuration -> call -> show.

May import everything but `cli`. Start with `distill.py`.
"""
