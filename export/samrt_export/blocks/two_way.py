"""The two-way transformer of SAM's mask decoder: tokens attend to the image, the image attends to the tokens.

Thousands of image positions meet a handful of tokens, so projecting the image is most of the work. Two ways round it:

- The first layer sees the image as the encoder left it. Its projections (`ImageProjections`) are made once for each
  picture; a prompt adds only what its mask changes, which is one vector where there is no mask.
- ``folded=True`` multiplies the image side's projections of the later layers into the tokens: with W the projection,
  q . (W x) = (W' q) . x, and sum a (W x) = W (sum a x). The image is then never projected nor split into heads. That halves
  the work of a click (8 tokens) and is level at about 16 tokens; fused attention kernels want the plain form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from samrt_export.blocks.layers import MLP


class ImageProjections(NamedTuple):
    """What the first layer's cross-attentions make of the image, each (B, heads, HW, C / 2 / heads)."""

    queries: Tensor
    """For the image attending to tokens."""
    keys: Tensor
    """For the tokens attending to the image, as values are."""
    values: Tensor


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
        return self.attend(
            self.split_heads(self.q_proj(q)), self.split_heads(self.k_proj(k)), self.split_heads(self.v_proj(v))
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All projected and split: q (B, heads, Nq, d), k and v (B, heads, Nk, d) -> (B, Nq, dim)."""
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def tokens_to_image(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The folded form for few queries. tokens: (B, T, C), keys and values: (B, HW, C) -> (B, T, C)."""
        heads, head_dim = self.num_heads, self.q_proj.out_features // self.num_heads
        to_key = self.k_proj.weight.unflatten(0, (heads, head_dim)) * head_dim**-0.5  # (heads, d, C)
        q = (self.split_heads(self.q_proj(tokens)) @ to_key).flatten(1, 2)  # (B, heads * T, C)
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
        k = self.split_heads(self.k_proj(keys)) * head_dim**-0.5  # (B, heads, T, d)
        to_query = self.q_proj.weight.unflatten(0, (heads, head_dim))  # (heads, d, C)
        bias = (k @ self.q_proj.bias.reshape(heads, head_dim, 1)).flatten(1).unsqueeze(1)  # (B, 1, heads * T)
        scores = image @ (k @ to_query).flatten(1, 2).transpose(1, 2) + bias  # (B, HW, heads * T)
        return self._spread(scores.unflatten(2, (heads, -1)).softmax(-1), values)

    def projected_image_to_tokens(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Folded, the queries projected before. queries: (B, heads, HW, d), keys and values: (B, T, C) -> (B, HW, C)."""
        k = self.split_heads(self.k_proj(keys)) * queries.shape[-1] ** -0.5  # (B, heads, T, d)
        weights = (queries @ k.transpose(2, 3)).softmax(-1)  # (B, heads, HW, T)
        return self._spread(weights.transpose(1, 2), values)

    def _spread(self, weights: Tensor, values: Tensor) -> Tensor:
        """weights: (B, HW, heads, T), values: (B, T, C) -> (B, HW, C), output projection included."""
        heads, head_dim = self.num_heads, self.v_proj.out_features // self.num_heads
        from_head = self.out_proj.weight.unflatten(1, (heads, head_dim)).permute(1, 2, 0)  # (heads, d, C)
        # Every position's weights sum to 1 in each head, so the bias may be shared out among the few values.
        v = self.split_heads(self.v_proj(values)) @ from_head + self.out_proj.bias / heads  # (B, heads, T, C)
        return weights.flatten(2) @ v.flatten(1, 2)  # type: ignore[no-any-return]

    def split_heads(self, x: Tensor) -> Tensor:
        """x: (B, N, C) -> (B, heads, N, C / heads)."""
        return x.unflatten(-1, (self.num_heads, x.shape[-1] // self.num_heads)).transpose(1, 2)  # type: ignore[no-any-return]


class TwoWayAttentionBlock(nn.Module):
    """Tokens among themselves, tokens to image, MLP on the tokens, image to tokens; a norm after each."""

    def __init__(self, dim: int, num_heads: int, mlp: nn.Module, first: bool, positions_stay: bool = False) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, num_heads, downsample_rate=2)
        self.first = first
        self.positions_stay = positions_stay

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        query_pe: Tensor,
        key_pe: Tensor,
        projected: ImageProjections | None = None,
        folded: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """queries, query_pe: (B, T, C); keys: (B, HW, C); key_pe: (1, HW, C) -> updated (queries, keys).

        projected: of keys and key_pe, where they are known
        """
        queries = self.norm1(self._attend_themselves(queries, query_pe))
        queries = self.norm2(queries + self._attend_image(queries + query_pe, keys, key_pe, projected, folded))
        queries = self.norm3(queries + self.mlp(queries))
        attended = self._attend_tokens(keys, key_pe, queries + query_pe, queries, projected, folded)
        return queries, self.norm4(keys + attended)

    def project(self, keys: Tensor, key_pe: Tensor) -> ImageProjections:
        """keys: (B, HW, C), key_pe: (1, HW, C) -> their projections."""
        placed = keys + key_pe
        inputs = zip(self._image_layers(), (placed, placed, keys), strict=True)
        return ImageProjections(*(self.cross_attn_token_to_image.split_heads(layer(x)) for layer, x in inputs))

    def project_change(self, change: Tensor) -> ImageProjections:
        """change: (B, HW or 1, C), added to the image -> what is added to its projections.

        A product for each head, with no reshape in between: HW and 1 both pass through one graph.
        """
        heads = self.cross_attn_token_to_image.num_heads
        weights = (layer.weight.unflatten(0, (heads, -1)).transpose(1, 2) for layer in self._image_layers())
        return ImageProjections(*(change.unsqueeze(1) @ weight for weight in weights))  # (heads, C, d)

    def _image_layers(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """What projects the image, in the order of `ImageProjections`."""
        to_image, to_tokens = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        return to_tokens.q_proj, to_image.k_proj, to_image.v_proj

    def _attend_themselves(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The first block adds no positions; the tokens are their own."""
        placed = tokens if self.first else tokens + positions
        if self.positions_stay:
            return placed + self.self_attn(placed, placed, placed)  # type: ignore[no-any-return]
        attended = self.self_attn(placed, placed, tokens)
        return attended if self.first else tokens + attended  # type: ignore[no-any-return]

    def _attend_image(
        self, tokens: Tensor, keys: Tensor, key_pe: Tensor, projected: ImageProjections | None, folded: bool
    ) -> Tensor:
        attention = self.cross_attn_token_to_image
        if projected is not None:
            return attention.attend(attention.split_heads(attention.q_proj(tokens)), projected.keys, projected.values)
        if folded:
            return attention.tokens_to_image(tokens, keys + key_pe, keys)
        return attention(tokens, keys + key_pe, keys)  # type: ignore[no-any-return]

    def _attend_tokens(
        self,
        keys: Tensor,
        key_pe: Tensor,
        tokens: Tensor,
        values: Tensor,
        projected: ImageProjections | None,
        folded: bool,
    ) -> Tensor:
        attention = self.cross_attn_image_to_token
        if projected is None:
            attend = attention.image_to_tokens if folded else attention
            return attend(keys + key_pe, tokens, values)
        if folded:
            return attention.projected_image_to_tokens(projected.queries, tokens, values)
        k, v = attention.k_proj(tokens), attention.v_proj(values)
        return attention.attend(projected.queries, attention.split_heads(k), attention.split_heads(v))


class TwoWayTransformer(nn.Module):
    """Two blocks and a last token-to-image attention.

    Two readings of the paper exist. SAM's own: in self-attention positions are added to queries and keys alone, and the first
    block has no residual. EfficientSAM's (``positions_stay``): positions go into the stream, so that values and the residual
    have them too, and every block has a residual.
    """

    def __init__(
        self,
        depth: int,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        make_mlp: Callable[[], nn.Module] | None = None,
        positions_stay: bool = False,
    ) -> None:
        """make_mlp: the MLP of a block, (B, T, dim) -> the same; None: two linear layers of mlp_dim with a ReLU between."""
        super().__init__()
        make = make_mlp or (lambda: MLP(dim, mlp_dim, dim, 2))
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(dim, num_heads, make(), i == 0, positions_stay) for i in range(depth)
        )
        self.final_attn_token_to_image = Attention(dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    @property
    def first_layer(self) -> TwoWayAttentionBlock:
        """The one that sees the image as the encoder left it."""
        layer = self.layers[0]
        assert isinstance(layer, TwoWayAttentionBlock)
        return layer

    def projections_with(self, known: tuple[Tensor, Tensor, Tensor], dense: Tensor) -> ImageProjections:
        """What the first layer makes of an image with a dense prompt added to it.

        known: what it makes of the image alone, (B, heads, HW, d) each in the order of `ImageProjections`
        dense: (P, HW or 1, C)
        """
        changes = self.first_layer.project_change(dense)
        return ImageProjections(*(a + b for a, b in zip(known, changes, strict=True)))

    def forward(
        self,
        keys: Tensor,
        key_pe: Tensor,
        tokens: Tensor,
        projected: ImageProjections | None = None,
        folded: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """keys: (B, HW, C) image, key_pe: (1, HW, C), tokens: (B, T, C) -> (tokens, keys), same shapes.

        projected: what the first layer makes of keys and key_pe, where it is known
        The tokens themselves serve as their own position encoding throughout.
        """
        queries = tokens
        for i, layer in enumerate(self.layers):
            queries, keys = layer(queries, keys, tokens, key_pe, projected if i == 0 else None, folded)
        final = self.final_attn_token_to_image
        attended = (final.tokens_to_image if folded else final)(queries + tokens, keys + key_pe, keys)
        return self.norm_final_attn(queries + attended), keys
