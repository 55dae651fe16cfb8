"""`python -m d4m_fast`."""

from d4m_fast.cli import main

main()
