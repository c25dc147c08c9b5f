"""Whole folders of pictures into masks: jobs that go on where they were killed, COCO files out.

    report = samrt.segment_everything(model, "photos", "out")
    report = samrt.segment_boxes(model, "photos", samrt.read_boxes("boxes.json"), "out")

Both take a single picture too. What is written where: `samrt.folder.job`.
"""

from samrt.folder.boxes import clip_boxes, segment_boxes
from samrt.folder.everything import segment_everything
from samrt.folder.run import JobReport

__all__ = ["JobReport", "clip_boxes", "segment_boxes", "segment_everything"]
