"""A finished run in other forms: class folders, WebDataset shards, parquet files with a dataset card.

May import what stands below `arms` in the layers of tests/test_layers.py. Start with `convert.py`; each form is a file,
and a line in the table of `forms.py`.
"""
