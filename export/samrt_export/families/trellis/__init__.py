"""TRELLIS image-to-3D (microsoft/TRELLIS, MIT, arXiv 2412.01506): the public relative of SAM 3D Objects.

It has no pointmap, no pose and no fuser. Graphs that differ from those of families/sam3d, at the official sizes:

| graph   | inputs                                                                         | outputs                             |
|---------|--------------------------------------------------------------------------------|-------------------------------------|
| dino    | pixels (1, 518, 518, 3), RGB 0..1: the object, cropped, on black               | ss_condition (1, 1374, 1024),       |
|         |                                                                                | slat_condition, the same            |
| ss_flow | shape (1, 4096, 8), ss_time (1,), ss_condition (1, tokens, 1024)               | shape_velocity (1, 4096, 8)         |

``ss_decoder``, ``slat_flow``, ``slat_gs`` and the graphs of the mesh are those of families/sam3d. Upstream's time runs from 1,
noise, to 0, data; the graphs turn it round, so that all models are sampled alike.
"""

from __future__ import annotations

from torch import nn

from samrt_export.families.sam3d.model import randomize
from samrt_export.families.sam3d.numbers import reconstruction_numbers
from samrt_export.families.sam3d.sparse_specs import sparse_graphs
from samrt_export.families.sam3d.structure import decoder_graph
from samrt_export.families.trellis.config import CONFIGS, VIEWS
from samrt_export.families.trellis.folder import read_state
from samrt_export.families.trellis.model import Trellis, build, condition_graph, flow_graph
from samrt_export.registry import Family, GraphSpec

__all__ = ["CONFIGS", "FAMILY", "Trellis", "build", "graphs", "read_state"]


def graphs(module: nn.Module, model: str) -> tuple[GraphSpec, ...]:
    """All graphs of a loaded model, in the order in which a self-test runs them."""
    assert isinstance(module, Trellis)
    return (
        condition_graph(module),
        flow_graph(module),
        decoder_graph(module.config, module.ss_decoder),
        *sparse_graphs(module, mirrored=True),
    )


FAMILY = Family(
    name="trellis",
    models=tuple(CONFIGS),
    build=build,
    graphs=graphs,
    numbers=lambda model: reconstruction_numbers(CONFIGS[model], VIEWS),
    abilities=lambda model: ("reconstruction",),
    official_from_hf=dict,
    randomize=randomize,
    licence=lambda model: ("MIT", ""),
    hub_id=lambda model: None,
    shipped_checkpoint=lambda model: None,
    read_state=read_state,
)
