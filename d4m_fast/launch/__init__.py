"""Several processes on one run: started here, on this machine, or elsewhere.

May import everything below `commands`; nothing below imports it. Start with `local.py`.
"""
