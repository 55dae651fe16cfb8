"""Durable files, sealed state files and locks: nothing written is lost, and nothing damaged is trusted.

May import nothing but `errors`. Start with `files.py`; `state.py` has the files that carry their own checksum.
"""
