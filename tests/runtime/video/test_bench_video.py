"""What bench measures of a model that tracks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from samrt import BundleError
from samrt.bench.tasks import GraphTask, made_up_picture
from samrt.bench.video import OBJECTS, FrameTask, video_tasks

from .doubles import Model

PICTURE = made_up_picture((40, 48))


def tasks(model: Any) -> tuple[list[GraphTask], list[FrameTask]]:
    found = video_tasks(model, PICTURE)
    graphs = [task for task in found if isinstance(task, GraphTask)]
    return graphs, [task for task in found if isinstance(task, FrameTask)]


def test_the_memory_graphs_meet_full_banks() -> None:
    graphs, frames = tasks(Model())
    assert [(task.graph, task.batch) for task in graphs] == [
        (name, count) for name in ("memory_attention", "memory_encoder") for count in OBJECTS
    ]
    assert [task.batch for task in frames] == list(OBJECTS)
    for task in graphs[: len(OBJECTS)]:
        assert task.feeds["memory_valid"].shape == (task.batch, 7)
        assert task.feeds["pointer_valid"].shape == (task.batch, 16)
        assert task.feeds["memory_valid"].all()
        assert task.feeds["pointer_valid"].all()
        assert sorted(task.feeds["memory_time"][0]) == [0, 1, 2, 3, 4, 5, 6]


def test_a_frame_is_the_whole_chain_and_depends_on_its_bank() -> None:
    model = Model()
    _, frames = tasks(model)

    def run_graph(name: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        if name == "image_encoder":
            return dict(model.encode(PICTURE).tensors)
        return model.executors[name].run(feeds)  # type: ignore[no-any-return]

    task = frames[1]
    model.calls.clear()
    made = task.run(run_graph)
    assert model.calls == dict.fromkeys(
        ("image_encoder", "memory_attention", "prompt_encoder", "mask_decoder", "memory_encoder"), 1
    )
    assert made["frame_memory"].shape[0] == task.batch == 4
    other = FrameTask(
        task.name,
        task.batch,
        task.image,
        {**task.bank, "memory": np.roll(task.bank["memory"], 1, axis=0) + 1},
        task.prompt,
        task.decoder_inputs,
    ).run(run_graph)
    assert not np.array_equal(made["low_res_masks"], other["low_res_masks"])


def test_a_model_that_cannot_track_is_refused() -> None:
    with pytest.raises(BundleError, match="cannot track"):
        tasks(Model(video=None))
