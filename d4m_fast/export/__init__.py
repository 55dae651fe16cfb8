"""The networks as ONNX files and TensorRT engines, compared with PyTorch and certified.

May import `measure`, `engine` and what is below. Start with `export.py`.
"""
