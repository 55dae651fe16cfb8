"""Diffusion-based dataset distillation (D4M, Su et al., CVPR 2024), fast and reproducible."""

__version__ = "0.1.0"
