"""How values move inside one process: sized streams, background workers, and where the time goes.

May import nothing but `errors`. Start with `stream.py`.
"""
