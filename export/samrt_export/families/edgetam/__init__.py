"""EdgeTAM (facebookresearch/EdgeTAM, Apache-2.0): SAM 2's tracker for phones.

Three things differ from SAM 2 (arXiv 2501.07256): the trunk is RepViT, a frame's memory map is read into 512 tokens by a
perceiver before it enters the bank, and memory attention has two layers. The graphs are those of families/sam2, named and
shaped alike, but for 512 tokens in ``frame_memory`` (K, 512, 64) and ``memory`` (K, M, 512, 64). ``pointer_distance`` is
taken and not used: pointers have no positions in time here.
"""

from __future__ import annotations

from torch import nn

from samrt_export.families.edgetam.config import CONFIGS
from samrt_export.families.edgetam.hugging_face import official_from_hf
from samrt_export.families.edgetam.model import EdgeTam, build, randomize
from samrt_export.families.edgetam.modules import ImageEncoderGraph
from samrt_export.families.sam2.specs import tracker_graphs, tracker_numbers
from samrt_export.registry import Family, Form, GraphSpec

__all__ = ["CONFIGS", "FAMILY", "EdgeTam", "build", "graphs", "official_from_hf", "randomize"]


def graphs(module: nn.Module, model: str) -> tuple[GraphSpec, ...]:
    """All graphs of a loaded model, in the order in which a self-test runs them."""
    assert isinstance(module, EdgeTam)
    return tracker_graphs(module, (Form(ImageEncoderGraph(module).eval()),))


FAMILY = Family(
    name="edgetam",
    models=tuple(CONFIGS),
    build=build,
    graphs=graphs,
    numbers=lambda model: tracker_numbers(CONFIGS[model]),
    abilities=lambda model: ("points", "boxes", "masks", "multimask", "video"),
    official_from_hf=official_from_hf,
    randomize=randomize,
    licence=lambda model: ("Apache-2.0", ""),
    hub_id=lambda model: CONFIGS[model].hub_id,
    shipped_checkpoint=lambda model: None,
)
