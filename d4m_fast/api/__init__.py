"""Functions of `import d4m_fast`, on which the commands stand, too: silent, and nothing global is other afterwards.

May import everything but `cli`, `commands` and `options`. Start with `distilling.py`; `d4m_fast/__init__.py` has the
names that are public.
"""

import logging

# A library's: without one, Python prints the warnings of programs that have not set up logging.
logging.getLogger("d4m_fast").addHandler(logging.NullHandler())
