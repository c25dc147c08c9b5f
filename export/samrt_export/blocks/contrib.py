"""Operators that only ONNX Runtime has. Graphs made for its CPU kernels use them; PyTorch computes the same without."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.onnx.ops import symbolic

DOMAIN = "com.microsoft"


def multi_head_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    num_heads: int = 1,
    scale: float | None = None,
    scores_bias: Tensor | None = None,
) -> Tensor:
    """``MultiHeadAttention``: adds the bias, splits heads, attends, merges heads.

    q: (B, Nq, C), k: (B, Nk, C), v: (B, Nk, D), before their bias; bias: (C + C + D,) or None; scale: of the scores, None is
    1 / sqrt(C / heads); scores_bias: (1 or B, heads, Nq, Nk), added to them, or None -> (B, Nq, D)

    On the CPU (ONNX Runtime 1.31) it never builds the Nq x Nk score matrix, which opset 23's ``Attention`` does: 268 MB
    for each global block of SAM 2 tiny, 470 MB for each layer of its memory attention. A scores_bias
    loses that: it is for windows.
    """
    if torch.onnx.is_in_onnx_export():
        operator = f"{DOMAIN}::MultiHeadAttention"
        attributes: dict[str, Any] = {"num_heads": num_heads} | ({} if scale is None else {"scale": scale})
        shape = (*q.shape[:2], v.shape[2])
        inputs: tuple[Tensor | None, ...] = (q, k, v) if bias is None else (q, k, v, bias)
        if scores_bias is not None:
            inputs = (q, k, v, bias, None, scores_bias)
        return symbolic(operator, inputs, attributes, dtype=q.dtype, shape=shape, version=1)
    width = q.shape[-1]
    parts = (None, None, None) if bias is None else bias.split((width, width, v.shape[-1]))
    q, k, v = (
        (x if b is None else x + b).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for x, b in zip((q, k, v), parts, strict=True)
    )  # each (B, heads, N, C / heads)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=scores_bias, scale=scale).transpose(1, 2).flatten(2)
