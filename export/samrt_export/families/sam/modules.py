"""One module for each graph, as upstream computes it and as it is exported. Inputs and outputs: the table of the package."""

from __future__ import annotations

from torch import Tensor, nn

from samrt_export.families.sam.model import Sam


class ImageEncoderReference(nn.Module):
    """``image_encoder`` as upstream computes it."""

    def __init__(self, model: Sam) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the table of the package."""
        image_embed = self.model.encode(image)
        return image_embed, *self.model.project(image_embed)


class ImageEncoderGraph(nn.Module):
    """``image_encoder`` around an exportable form of the encoder, with the position encoding baked in.

    encoder: image (B, S, S, 3) float 0..255 -> image_embed (B, hw, C)
    """

    dense_position: Tensor

    def __init__(self, model: Sam, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.first_layer = model.decoder.transformer.first_layer
        self.register_buffer("dense_position", model.prompt_encoder.dense_position().detach())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the table of the package."""
        image_embed = self.encoder(image)
        return image_embed, *self.first_layer.project(image_embed, self.dense_position)


class MaskDecoderReference(nn.Module):
    """``mask_decoder`` as upstream computes it: from the image embedding, nothing known before."""

    def __init__(self, model: Sam) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        image_embed: Tensor,
        image_queries: Tensor,
        image_keys: Tensor,
        image_values: Tensor,
        sparse: Tensor,
        dense: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See the table of the package."""
        model = self.model
        position, hw = model.prompt_encoder.dense_position(), (model.config.embed_size,) * 2
        return model.decoder(image_embed + dense, position, sparse, hw)  # type: ignore[no-any-return]


class MaskDecoderGraph(nn.Module):
    """``mask_decoder`` with the image's position encoding baked in and its first projections taken from the encoder."""

    position: Tensor

    def __init__(self, model: Sam, folded: bool = False) -> None:
        super().__init__()
        self.folded = folded
        self.hw = (model.config.embed_size,) * 2
        self.decoder = model.decoder
        self.register_buffer("position", model.prompt_encoder.dense_position().detach())

    def forward(
        self,
        image_embed: Tensor,
        image_queries: Tensor,
        image_keys: Tensor,
        image_values: Tensor,
        sparse: Tensor,
        dense: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See the table of the package."""
        projected = self.decoder.transformer.projections_with((image_queries, image_keys, image_values), dense)
        return self.decoder(  # type: ignore[no-any-return]
            image_embed + dense, self.position, sparse, self.hw, projected, self.folded
        )
