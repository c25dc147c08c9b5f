"""Models that propose every mask of a picture at once, like FastSAM: one network, no prompts; prompts choose among the masks.

import samrt
from samrt import proposals

with samrt.ProposalModel("bundles/fast-sam-s") as model:
    segments = model.propose(samrt.read_image("picture.jpg"))      # samrt.segments.Segments, best score first
mask = proposals.select_box(segments, [100, 80, 400, 360])         # bool (H, W)
mask = proposals.select_points(segments, [[320, 200]], [1])
"""

from samrt.proposals.model import ProposalModel
from samrt.proposals.selection import select_box, select_boxes, select_by, select_hit, select_points

__all__ = ["ProposalModel", "select_box", "select_boxes", "select_by", "select_hit", "select_points"]
