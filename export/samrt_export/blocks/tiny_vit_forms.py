"""TinyViT as it is exported: batch norms are multiplied into the convolutions, tables are looked up.

The inner norms' weights are multiplied into the products behind them. What fills up a window is then zero *after* the norm
too, and its queries, keys and values are the product's bias. Products are of matrices (``Gemm``, which adds the bias itself).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.contrib import multi_head_attention
from samrt_export.blocks.hiera import map_from_windows, windows_from_map
from samrt_export.blocks.layers import linear_of
from samrt_export.blocks.repvit import ConvNorm
from samrt_export.blocks.tiny_vit import Attention, Block, MbConv, PatchMerging, Stage, TinyVit

AttentionForm = Callable[[Attention], nn.Module]
"""Of an attention: tokens (W * N, C) after the norm, of W windows of N -> the same before ``proj``."""


class WindowAttention(nn.Module):
    """Queries, keys and values of `Attention` in ONNX's order; the rest is a kernel's."""

    table: Tensor

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads, self.tokens = attention.heads, attention.window**2
        weight, bias = _behind_norm(attention.norm, attention.qkv)
        by_part = (part.unflatten(0, (self.heads, 3, -1)).transpose(0, 1).flatten(0, 2) for part in (weight, bias))
        self.weight, self.bias = (nn.Parameter(part, requires_grad=False) for part in by_part)
        self.register_buffer("table", attention.bias().detach()[None].contiguous())  # (1, heads, N, N)


class OrtCpuAttention(WindowAttention):
    """For ONNX Runtime's CPU kernel, which splits heads itself."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (W * N, C), the same out."""
        layers = zip(self.weight.chunk(3), self.bias.chunk(3), strict=True)
        q, k, v = (F.linear(x, weight, bias).unflatten(0, (-1, self.tokens)) for weight, bias in layers)  # (W, N, C)
        return multi_head_attention(q, k, v, num_heads=self.heads, scores_bias=self.table).flatten(0, 1)


class PlainAttention(WindowAttention):
    """As one ``Attention`` operator."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (W * N, C), the same out."""
        parts = F.linear(x, self.weight, self.bias).unflatten(1, (3, self.heads, -1)).unflatten(0, (-1, self.tokens))
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)  # each (W, heads, N, C / heads)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.table).transpose(1, 2).flatten(2).flatten(0, 1)


class ConvForm(nn.Module):
    """`MbConv` or `PatchMerging`."""

    def __init__(self, part: MbConv | PatchMerging) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = part.conv1.fused(), part.conv2.fused(), part.conv3.fused()
        self.residual = isinstance(part, MbConv)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C', H', W')."""
        y = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return F.gelu(y + x) if self.residual else y


class BlockForm(nn.Module):
    """`Block` with an attention of some form."""

    def __init__(self, block: Block, attention: AttentionForm) -> None:
        super().__init__()
        self.window, self.eps = block.attn.window, block.attn.norm.eps
        self.attention = attention(block.attn)
        self.proj = block.attn.proj
        self.local_conv = block.local_conv.fused()
        self.fc1 = linear_of(*_behind_norm(block.mlp.norm, block.mlp.fc1))
        self.fc2 = block.mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), the same out. What windows are filled up with is cut off before the last projection."""
        x = x.permute(0, 2, 3, 1)
        hw, c = (x.shape[1], x.shape[2]), x.shape[3]
        windows = windows_from_map(F.layer_norm(x, (c,), eps=self.eps), self.window)  # (W, window, window, C)
        attended = self.attention(windows.flatten(0, 2)).unflatten(0, (-1, self.window, self.window))
        x = x + _product(map_from_windows(attended, self.window, hw), self.proj)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = F.gelu(_product(F.layer_norm(x, (c,), eps=self.eps), self.fc1))
        return (x + _product(y, self.fc2)).permute(0, 3, 1, 2)


class TinyVitForm(nn.Module):
    """The encoder from the picture on.

    The pictures' spread is folded into the first convolution, their mean is not: it pads with zeros, which stand for the mean.
    """

    mean: Tensor

    def __init__(self, encoder: TinyVit, mean: Sequence[float], std: Sequence[float], attention: AttentionForm) -> None:
        """mean, std: of the picture on the 0..1 scale"""
        super().__init__()
        first, activation, second = encoder.patch_embed.seq
        assert isinstance(first, ConvNorm)
        assert isinstance(second, ConvNorm)
        self.patches = nn.Sequential(first.fused(), activation, second.fused())
        spread = torch.tensor(std).reshape(1, 3, 1, 1) * 255
        self.patches[0].weight = nn.Parameter(first.fused().weight / spread, requires_grad=False)
        self.register_buffer("mean", torch.tensor(mean) * 255)
        self.stages = nn.ModuleList(_stage_form(stage, attention) for stage in encoder.layers)
        self.neck = encoder.neck

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, S, S, 3) 0..255 -> (B, hw, C)."""
        return self.maps(image)[0]

    def maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: (B, S, S, 3) 0..255 -> embedding (B, hw, C), what the second stage hands on (B, h, w, channels[2])."""
        x, early = self.patches((image - self.mean).permute(0, 3, 1, 2)), None
        for i, stage in enumerate(self.stages):
            x = stage(x)
            early = x if i == 1 else early
        assert early is not None
        return self.neck(x).flatten(2).transpose(1, 2), early.permute(0, 2, 3, 1)


def _stage_form(stage: nn.Module, attention: AttentionForm) -> nn.Sequential:
    """(B, C, H, W) -> (B, C', H', W')."""
    assert isinstance(stage, Stage)
    parts = [*stage.blocks, *([] if stage.downsample is None else [stage.downsample])]
    return nn.Sequential(
        *(BlockForm(part, attention) if isinstance(part, Block) else _conv_form(part) for part in parts)
    )


def _conv_form(part: nn.Module) -> ConvForm:
    assert isinstance(part, MbConv | PatchMerging)
    return ConvForm(part)


def _behind_norm(norm: nn.LayerNorm, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias that compute the layer behind the norm from what the norm makes without weights of its own."""
    weight = layer.weight.double()
    bias = layer.bias.double() + weight @ norm.bias.double()
    return (weight * norm.weight.double()).detach().float(), bias.detach().float()


def _product(x: Tensor, layer: nn.Linear) -> Tensor:
    """x: (B, H, W, C) -> (B, H, W, C'), as one product of two matrices."""
    b, h, w, _ = x.shape
    return layer(x.flatten(0, 2)).reshape(b, h, w, -1)  # type: ignore[no-any-return]
