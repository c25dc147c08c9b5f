"""Precision is written into the graph at export: typed fp16 and bf16 graphs, int8 weights for the CPU, and their proof.

::

    fp32 graph ── ranges, hazards ──> islands ──> typed ──> emulate ──> parity with PyTorch
                                         ^                                   |
                                         └──────── smallest set that holds ──┘

nvidia-modelopt's AutoCast does the same job with fixed thresholds (values above 512, initialisers above 65504, depth of
reductions) and does not measure the graph it made. Here hazards are where the search begins, and a set of fp32 nodes is kept
because it holds the tolerance against PyTorch. Its pins (onnx ~= 1.21, onnxruntime ~= 1.24) do not fit ours: the idea is
borrowed, not the package.
"""
