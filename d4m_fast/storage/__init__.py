"""How anything is written so that nothing is lost, and read so that nothing wrong is trusted.

May import nothing but `errors`. Start with `files.py`; `state.py` has the files that carry their own checksum.
"""
