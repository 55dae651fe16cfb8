"""Movement of values inside one process: sized streams, background workers, and a stopwatch for both.

May import nothing but `errors`. Start with `stream.py`.
"""
