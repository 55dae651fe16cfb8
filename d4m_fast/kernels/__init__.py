"""Batched k-means: NumPy and CuPy behind one driver, and the CUDA source.

May import `config` and `errors`. Start with `kmeans.py`.
"""
