"""SAM's ViT encoder as it is exported: its relative positions folded into plain attention, exactly.

A score is s q.k + q.R[i, i'] + q.C[j, j'] for a query at row i and column j and a key at row i' and column j'. That is one
scalar product of longer vectors, of the query followed by its products with all rows' and columns' vectors, and of the key
followed by the one-hot codes of its row and its column. So a fused kernel can do it, and no scores have to exist.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.contrib import multi_head_attention
from samrt_export.blocks.hiera import map_from_windows, windows_from_map
from samrt_export.blocks.layers import linear_of
from samrt_export.blocks.vit import ImageEncoderVit, VitAttention, VitBlock

AttentionForm = Callable[[VitAttention], nn.Module]
"""Of an attention: (B, side, side, dim) -> the same before ``proj``."""


class FoldedAttention(nn.Module):
    """Queries and keys of `VitAttention`, lengthened; the rest is a kernel's. The scores' scale is in the queries."""

    rows: Tensor
    columns: Tensor
    codes: Tensor

    def __init__(self, attention: VitAttention, multiple: int = 1) -> None:
        """multiple: what queries and keys are as wide as a multiple of, with zeros at their ends"""
        super().__init__()
        self.num_heads, self.side = attention.num_heads, attention.side
        side, dim = attention.side, attention.proj.in_features
        weights, biases = attention.qkv.weight.detach().split(dim), attention.qkv.bias.detach().split(dim)
        self.q = linear_of(weights[0] * attention.scale, biases[0] * attention.scale)
        self.k, self.v = (linear_of(w, b) for w, b in zip(weights[1:], biases[1:], strict=True))  # views: no memory
        rows, columns = (table.detach().transpose(1, 2) / attention.scale for table in attention.tables())
        self.register_buffer("rows", rows.contiguous())  # (side i, d, side i')
        zeros = -(rows.shape[1] + 2 * side) % multiple
        self.register_buffer("columns", F.pad(columns, (0, zeros)).contiguous())  # (side j, d, side j' + zeros)
        eye = torch.eye(side)
        of_row, of_column = eye[:, None].expand(-1, side, -1), eye[None].expand(side, -1, -1)
        codes = F.pad(torch.cat((of_row, of_column), -1), (0, zeros))
        self.register_buffer("codes", codes.flatten(0, 1))  # (tokens, 2 * side + zeros)

    def queries(self, x: Tensor) -> Tensor:
        """x: (B, side, side, dim) -> (B, tokens, heads, d + 2 * side + zeros)."""
        b, side, heads = x.shape[0], self.side, self.num_heads
        q = self.q(x)
        of_rows = q.reshape(b, side, side * heads, -1) @ self.rows  # (B, side, side * heads, side)
        q = q.reshape(b, side, side, heads, -1)
        of_columns = q @ self.columns  # (B, side, side, heads, side + zeros)
        return torch.cat((q, of_rows.reshape(b, side, side, heads, side), of_columns), -1).flatten(1, 2)

    def keys(self, x: Tensor) -> Tensor:
        """x: (B, side, side, dim) -> (B, tokens, heads, d + 2 * side + zeros)."""
        b, tokens, heads = x.shape[0], self.side**2, self.num_heads
        k = self.k(x).reshape(b, tokens, heads, -1)
        return torch.cat((k, self.codes[None, :, None].expand(b, -1, heads, -1)), -1)


class OrtCpuAttention(FoldedAttention):
    """For ONNX Runtime's CPU kernel, which takes values of another width and holds no scores."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, side, side, dim), the same out."""
        q, k = self.queries(x).flatten(2), self.keys(x).flatten(2)
        v = self.v(x).flatten(1, 2)
        return multi_head_attention(q, k, v, num_heads=self.num_heads, scale=1.0).unflatten(1, (self.side, self.side))  # type: ignore[no-any-return]


class PlainAttention(FoldedAttention):
    """As one ``Attention`` operator of opset 23, values as wide as they are: OpenVINO computes no more than it must."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, side, side, dim), the same out."""
        q, k = self.queries(x).transpose(1, 2), self.keys(x).transpose(1, 2)  # (B, heads, tokens, width)
        v = self.v(x).flatten(1, 2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        return self.attend(q, k, v).transpose(1, 2).flatten(2).unflatten(1, (self.side, self.side))  # type: ignore[no-any-return]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q and k: (B, heads, tokens, width), v: (B, heads, tokens, d), the same out."""
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)


class EvenAttention(PlainAttention):
    """The same with queries, keys and values equally wide, as TensorRT wants them, and of a width that its kernels take."""

    def __init__(self, attention: VitAttention) -> None:
        super().__init__(attention, multiple=16)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q and k: (B, heads, tokens, width), v: (B, heads, tokens, d), the same out."""
        padded = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
        return F.scaled_dot_product_attention(q, k, padded, scale=1.0)[..., : v.shape[-1]]


class VitForm(nn.Module):
    """The encoder from the picture on, normalisation and positions folded into the patches' convolution."""

    weight: Tensor
    position: Tensor

    def __init__(
        self,
        encoder: ImageEncoderVit,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        whole: AttentionForm,
        window: AttentionForm | None = None,
    ) -> None:
        """mean, std: of the picture on the 0..1 scale; whole, window: the attentions of the two kinds of blocks"""
        super().__init__()
        self.config = encoder.config
        weight, position = encoder.patch_form(torch.tensor(mean) * 255, torch.tensor(std) * 255)
        self.register_buffer("weight", weight)
        self.register_buffer("position", position)
        self.blocks = nn.ModuleList()
        self.attentions = nn.ModuleList()
        for block in encoder.blocks:
            assert isinstance(block, VitBlock)
            self.blocks.append(block)
            self.attentions.append((window or whole if block.window else whole)(block.attn))
        self.neck = encoder.neck

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, S, S, 3) 0..255 -> (B, hw, C)."""
        return self.maps(image)[0]

    def maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: (B, S, S, 3) 0..255 -> embedding (B, hw, C), first global block's output (B, h, w, embed_dim)."""
        x = F.conv2d(image.permute(0, 3, 1, 2), self.weight, stride=self.config.patch_size).permute(0, 2, 3, 1)
        x = x + self.position
        early = x
        for i, (block, attention) in enumerate(zip(self.blocks, self.attentions, strict=True)):
            x = _block(x, block, attention)
            if i == self.config.global_attn_indexes[0]:
                early = x
        return self.neck(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2), early


def _block(x: Tensor, block: nn.Module, attention: nn.Module) -> Tensor:
    """x: (B, H, W, dim), the same out: `VitBlock` with another attention. What windows are filled up with is cut off before
    the last projection."""
    assert isinstance(block, VitBlock)
    attended = block.norm1(x)
    if block.window:
        hw = (x.shape[1], x.shape[2])
        attended = map_from_windows(attention(windows_from_map(attended, block.window)), block.window, hw)
    else:
        attended = attention(attended)
    x = x + block.attn.proj(attended)
    return x + block.mlp(block.norm2(x))  # type: ignore[no-any-return]
