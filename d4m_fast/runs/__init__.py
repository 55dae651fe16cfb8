"""Run directories on the disk: plan, records, images and latents, and checks that they are whole.

May import `sources`, `flow`, `storage`. Start with `run.py`: how a run is begun, committed class by class, and gone on
with.
"""
