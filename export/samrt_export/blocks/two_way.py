"""The two-way transformer of SAM's mask decoder: tokens attend to the image, the image attends to the tokens.

Thousands of image positions meet a handful of tokens. ``folded=True`` computes the same attention with the image side's
projections multiplied into the tokens first: with W the projection, q . (W x) = (W' q) . x, and sum a (W x) = W (sum a x).
The image is then never projected nor split into heads. That halves the work of a click (8 tokens) and is level at about 16
tokens; fused attention kernels want the plain form.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.layers import MLP


class Attention(nn.Module):
    """Multi-head attention that may work at a smaller inner width than its input (``downsample_rate``)."""

    def __init__(self, dim: int, num_heads: int, downsample_rate: int = 1, kv_dim: int | None = None) -> None:
        super().__init__()
        inner = dim // downsample_rate
        kv_dim = dim if kv_dim is None else kv_dim
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(kv_dim, inner)
        self.v_proj = nn.Linear(kv_dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: (B, Nq, dim), k and v: (B, Nk, kv_dim) -> (B, Nq, dim)."""
        x = F.scaled_dot_product_attention(
            self._split_heads(self.q_proj(q)), self._split_heads(self.k_proj(k)), self._split_heads(self.v_proj(v))
        )  # (B, heads, Nq, inner / heads)
        return self.out_proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def tokens_to_image(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The folded form for few queries. tokens: (B, T, C), keys and values: (B, HW, C) -> (B, T, C)."""
        heads, head_dim = self.num_heads, self.q_proj.out_features // self.num_heads
        to_key = self.k_proj.weight.unflatten(0, (heads, head_dim)) * head_dim**-0.5  # (heads, d, C)
        q = (self._split_heads(self.q_proj(tokens)) @ to_key).flatten(1, 2)  # (B, heads * T, C)
        # The key bias adds the same to all scores of a query: softmax does not see it. The scores are transposed after the
        # product, which is cheaper than transposing the image before it.
        weights = (keys @ q.transpose(1, 2)).transpose(1, 2).softmax(-1)  # (B, heads * T, HW)
        context = (weights @ values).unflatten(1, (heads, -1))  # (B, heads, T, C)
        to_value = self.v_proj.weight.unflatten(0, (heads, head_dim)).transpose(1, 2)  # (heads, C, d)
        x = (context @ to_value).transpose(1, 2).flatten(2) + self.v_proj.bias  # (B, T, inner)
        return self.out_proj(x)  # type: ignore[no-any-return]

    def image_to_tokens(self, image: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The folded form for few keys. image: (B, HW, C), keys and values: (B, T, C) -> (B, HW, C)."""
        heads, head_dim = self.num_heads, self.q_proj.out_features // self.num_heads
        k = self._split_heads(self.k_proj(keys)) * head_dim**-0.5  # (B, heads, T, d)
        to_query = self.q_proj.weight.unflatten(0, (heads, head_dim))  # (heads, d, C)
        bias = k @ self.q_proj.bias.reshape(heads, head_dim, 1)  # (B, heads, T, 1)
        scores = image @ (k @ to_query).flatten(1, 2).transpose(1, 2) + bias.flatten(1).unsqueeze(
            1
        )  # (B, HW, heads * T)
        weights = scores.unflatten(2, (heads, -1)).softmax(-1).flatten(2)
        from_head = self.out_proj.weight.unflatten(1, (heads, head_dim)).permute(1, 2, 0)  # (heads, d, C)
        # Every position's weights sum to 1 in each head, so the bias may be shared out among the few values.
        v = self._split_heads(self.v_proj(values)) @ from_head + self.out_proj.bias / heads  # (B, heads, T, C)
        return weights @ v.flatten(1, 2)  # type: ignore[no-any-return]

    def _split_heads(self, x: Tensor) -> Tensor:
        """x: (B, N, C) -> (B, heads, N, C / heads)."""
        return x.unflatten(-1, (self.num_heads, x.shape[-1] // self.num_heads)).transpose(1, 2)  # type: ignore[no-any-return]


class TwoWayAttentionBlock(nn.Module):
    """Tokens among themselves, tokens to image, MLP on the tokens, image to tokens; a norm after each."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, first: bool) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim, dim, 2)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, num_heads, downsample_rate=2)
        self.first = first

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor, folded: bool
    ) -> tuple[Tensor, Tensor]:
        """queries, query_pe: (B, T, C); keys: (B, HW, C); key_pe: (1, HW, C) -> updated (queries, keys)."""
        to_image, to_tokens = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        attend_image = to_image.tokens_to_image if folded else to_image
        attend_tokens = to_tokens.image_to_tokens if folded else to_tokens
        if self.first:  # the first block's self-attention has neither positions nor a residual
            queries = self.self_attn(queries, queries, queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries)
        queries = self.norm1(queries)

        keys_with_pe = keys + key_pe
        queries = self.norm2(queries + attend_image(queries + query_pe, keys_with_pe, keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = self.norm4(keys + attend_tokens(keys_with_pe, queries + query_pe, queries))
        return queries, keys


class TwoWayTransformer(nn.Module):
    """Two blocks and a last token-to-image attention."""

    def __init__(self, depth: int, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayAttentionBlock(dim, num_heads, mlp_dim, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, keys: Tensor, key_pe: Tensor, tokens: Tensor, folded: bool = False) -> tuple[Tensor, Tensor]:
        """keys: (B, HW, C) image, key_pe: (1, HW, C), tokens: (B, T, C) -> (tokens, keys), same shapes.

        The tokens themselves serve as their own position encoding throughout.
        """
        queries = tokens
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, key_pe, folded)
        final = self.final_attn_token_to_image
        attended = (final.tokens_to_image if folded else final)(queries + tokens, keys + key_pe, keys)
        return self.norm_final_attn(queries + attended), keys
