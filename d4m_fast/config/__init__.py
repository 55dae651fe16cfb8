"""What a user can ask of each command: one frozen dataclass each, checked once, where it is built.

Every default, help text and bound of an option stands here and nowhere else; `d4m_fast.options` makes flags of them.
May import errors and wording. Start with `fields.py`, then `distill.py`.
"""
