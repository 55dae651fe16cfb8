"""The networks on every engine, the noise schedule, and the stages encode, prototypes and generate.

May import `runs`, `sources`, `flow`, `storage`, `kernels`. Start with `networks.py`; `denoise.py` is the loop.
"""
