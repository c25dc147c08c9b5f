"""Objects followed through video: live streams (`VideoTracker`), whole videos (`VideoPredictor`)."""

from samrt.video.bank import MemoryBank
from samrt.video.output import TrackedFrame
from samrt.video.predictor import VideoPredictor
from samrt.video.tracker import VideoTracker
from samrt.video.video_state import VideoState

__all__ = ["MemoryBank", "TrackedFrame", "VideoPredictor", "VideoState", "VideoTracker"]
