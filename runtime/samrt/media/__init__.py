"""Frames in, results out: videos, folders, cameras and iterators; overlay videos, mask pictures, COCO-RLE lines.

    for frame in samrt.media.open_frames("clip.mp4", stop=100):
        ...  # uint8 (H, W, 3) RGB

Video files, cameras and streams are read and written with PyAV, ``pip install "samrt[video]"``; it is imported where it is
used, and pictures need none of it.
"""

from samrt.media.frame_prompts import FramePrompt, read_prompts_file
from samrt.media.frames import Frames, TimedFrame
from samrt.media.opening import open_frames
from samrt.media.prefetch import Prefetched
from samrt.media.results import MaskFolder, MaskLines, ResultWriter, open_results
from samrt.media.track import TrackProgress, TrackReport, track_frames, track_video
from samrt.rle import decode_mask, encode_mask

__all__ = [
    "FramePrompt",
    "Frames",
    "MaskFolder",
    "MaskLines",
    "Prefetched",
    "ResultWriter",
    "TimedFrame",
    "TrackProgress",
    "TrackReport",
    "decode_mask",
    "encode_mask",
    "open_frames",
    "open_results",
    "read_prompts_file",
    "track_frames",
    "track_video",
]
