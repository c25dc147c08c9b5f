"""Precision is written into the graph at export: typed fp16 and bf16 graphs, int8 weights for the CPU, and their proof.

::

    fp32 graph ── ranges, hazards ──> islands ──> typed ──> emulate ──> parity with PyTorch
                                         ^                                   |
                                         └──────── smallest set that holds ──┘
"""
