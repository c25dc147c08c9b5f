"""Operators that only ONNX Runtime has. Graphs made for its CPU kernels use them; PyTorch computes the same without."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.onnx.ops import symbolic

DOMAIN = "com.microsoft"


def multi_head_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    """``MultiHeadAttention``: adds the bias, splits heads, attends, merges heads.

    q: (B, Nq, C), k and v: (B, Nk, C), before their bias; bias: (3 * C,) -> (B, Nq, C)

    On the CPU (ONNX Runtime 1.31) it never builds the Nq x Nk score matrix, which opset 23's ``Attention`` does: 268 MB
    for each global block of SAM 2 tiny.
    """
    if torch.onnx.is_in_onnx_export():
        operator = f"{DOMAIN}::MultiHeadAttention"
        return symbolic(operator, (q, k, v, bias), {"num_heads": num_heads}, dtype=q.dtype, shape=q.shape, version=1)
    heads = [
        (x + b).unflatten(-1, (num_heads, -1)).transpose(1, 2) for x, b in zip((q, k, v), bias.chunk(3), strict=True)
    ]  # each (B, heads, N, C / heads)
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
