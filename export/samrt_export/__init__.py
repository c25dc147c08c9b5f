"""Checkpoints in, verified bundles out: the exporter of samrt, and the only place with PyTorch and ONNX."""
