"""Options of every command: one frozen dataclass per command, checked once, where it is built.

Every default, help text and bound of an option stands here and nowhere else; `d4m_fast.options` makes flags of them.
May import errors and wording. Start with `fields.py`, then `distill.py`.
"""
