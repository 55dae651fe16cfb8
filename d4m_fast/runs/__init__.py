"""What a run leaves on the disk: its directory, plan, records, images and latents, and whether they are whole.

May import `sources`, `flow`, `storage`. Start with `run.py`: how a run is begun, committed class by class, and gone on
with.
"""
