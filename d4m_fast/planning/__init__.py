"""Costs of a run before it starts: operations, hours, memory, batch sizes.

May import `measure`, `engine` and what is below. Start with `cost.py`; `batches.py` chooses the batches of a run.
"""
