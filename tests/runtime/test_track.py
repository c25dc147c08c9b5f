"""``samrt track``: what it understands, writes, refuses; and Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner, Result

import samrt
from samrt.cli import build_app
from samrt.commands.track import Interrupt, read_prompts
from samrt.media import open_frames

from .media.clips import ColourTracker, numbers, paint, write_clip

trackers: list[ColourTracker] = []


@pytest.fixture(autouse=True)
def _double(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with a tracker of colours in place of the model's."""

    def make(model: Any, *, non_overlap: bool) -> ColourTracker:
        trackers.append(ColourTracker(model, non_overlap=non_overlap))
        return trackers[-1]

    monkeypatch.setattr("samrt.video.VideoTracker", make)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", 30)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), ["track", *(str(argument) for argument in arguments)])


def test_a_video_to_a_video(bundle_path: Path, clip: Path) -> None:
    out = clip.with_name("out.mp4")
    result = run(clip, "-b", bundle_path, "--point", "3,2", "-o", out, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["frames"], report["obj_ids"], report["out"]) == (30, [1], str(out))
    assert (report["provider"], report["precision"]) == ("CPUExecutionProvider", "fp32")
    assert (report["codec"], report["stopped"], report["dropped"]) == ("libx264", False, 0)
    frames = open_frames(out)
    assert numbers(frames) == list(range(30))
    assert frames.fps == pytest.approx(10)
    assert frames[4][2, 64, 2] > 60  # object 1 is blue on red now
    assert not trackers[-1].non_overlap


def test_a_folder_to_masks_with_prompts_of_every_kind(bundle_path: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "frames", tmp_path / "masks"
    folder.mkdir()
    for index in range(6):
        PIL.Image.fromarray(paint(index)).save(folder / f"{index}.png")
    inside = np.zeros((32, 128), np.uint8)
    inside[:8] = 255
    PIL.Image.fromarray(inside).save(tmp_path / "mask.png")
    (tmp_path / "prompts.json").write_text(json.dumps({"prompts": [{"frame": 4, "obj_id": 9, "points": [[3, 30]]}]}))
    result = run(
        folder, "-b", bundle_path, "-o", out, "--every", 2, "--mask", f"{tmp_path / 'mask.png'}:5",
        "--box", "0,20,2,30:2@2", "--prompts", tmp_path / "prompts.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "3 frames in" in result.stdout
    assert "objects: 2, 5, 9" in result.stdout
    assert f"written: {out}" in result.stdout
    assert trackers[-1].calls == [
        (0, "mask", 5, 8 * 128),
        (1, "box", 2, [0, 20, 2, 30]),
        (2, "points", 9, [[3, 30]], [1], None),
    ]
    assert trackers[-1].non_overlap
    assert sorted(path.name for path in out.iterdir()) == ["00000.png", "00002.png", "00004.png", "masks.jsonl"]
    with PIL.Image.open(out / "00002.png") as picture:
        assert set(np.unique(np.asarray(picture))) == {0, 2, 5}


@pytest.mark.parametrize(
    ("points", "boxes", "expected"),
    [
        (["1,2"], [], [(None, 1, [[1, 2]], [1], None)]),
        (["1,2,0", "3.5,4"], ["0,0,5,5"], [(None, 1, [[1, 2], [3.5, 4]], [0, 1], [0, 0, 5, 5])]),
        (
            ["1,2@30:7", "3,4,0:7@30", "5,6:7"],
            [],
            [(30, 7, [[1, 2], [3, 4]], [1, 0], None), (None, 7, [[5, 6]], [1], None)],
        ),
        ([], ["0,0,5,5", "1,1,6,6"], [(None, 1, None, None, [0, 0, 5, 5]), (None, 2, None, None, [1, 1, 6, 6])]),
        (
            ["9,9:1"],
            ["0,0,5,5", "1,1,6,6"],
            [(None, 1, [[9, 9]], [1], None), (None, 2, None, None, [0, 0, 5, 5]), (None, 3, None, None, [1, 1, 6, 6])],
        ),
        ([], ["0,0,5,5", "1,1,6,6@8"], [(None, 1, None, None, [0, 0, 5, 5]), (8, 1, None, None, [1, 1, 6, 6])]),
    ],
)
def test_prompt_texts(points: list[str], boxes: list[str], expected: list[Any]) -> None:
    read = read_prompts(points, boxes, [])
    assert [(one.frame, one.obj_id, one.points, one.labels, one.box) for one in read] == expected


def test_an_indexed_mask_brings_its_numbers(tmp_path: Path) -> None:
    ids = np.zeros((4, 6), np.uint8)
    ids[0], ids[3] = 3, 8
    picture = PIL.Image.fromarray(ids)
    picture.putpalette(bytes(range(256)) * 3)
    path = tmp_path / "a@b:c.png"
    picture.save(path)
    masks = {(one.obj_id, one.frame): one.mask for one in read_prompts([], [], [f"{path}@12"])}
    assert list(masks) == [(3, 12), (8, 12)]
    np.testing.assert_array_equal(masks[8, 12], ids == 8)
    (one,) = read_prompts([], [], [f"{path}:4"])
    assert (one.obj_id, one.frame) == (4, None)
    np.testing.assert_array_equal(one.mask, ids > 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no prompt | got: nothing to track | expected: --point, --box, --mask or --prompts"),
        (["--point", "1"], "cannot read --point | got: '1'"),
        (["--point", "@3"], "cannot read --point | got: '@3' | expected: X,Y[,LABEL][@FRAME][:OBJ]"),
        (["--point", "1,2@x"], "cannot read --point"),
        (["--point", "1,2@-1"], "cannot read --point"),
        (["--point", "1,2,x"], "the label of --point is not a whole number"),
        (["--box", "1,2,3"], "cannot read --box | got: '1,2,3' | expected: X0,Y0,X1,Y1"),
        (["--box", "0,0,1,1", "--box", "2,2,3,3", "--point", "1,1"], "it is not clear which box the points belong to"),
        (["--box", "0,0,1,1:4", "--box", "2,2,3,3:4"], "2 boxes for object 4 on one frame"),
        (["--mask", "none.png"], "cannot read the mask none.png"),
        (["--prompts", "none.json"], "cannot read none.json"),
        (
            ["--point", "1,1@40", "--stop", "30"],
            "the prompt for object 1 on frame 40 is about a frame that is not read",
        ),
        (["--point", "1,1", "--start", "30"], "CLIP has no frame 30 | got: 30 frames"),
        (["--point", "1,1", "-o", "out.gif"], "unknown kind of output"),
    ],
)
def test_what_is_refused(bundle_path: Path, clip: Path, arguments: list[str], message: str) -> None:
    out = [] if "-o" in arguments else ["-o", clip.with_name("out.mp4")]
    result = run(clip, "-b", bundle_path, *out, *arguments)
    assert isinstance(result.exception, samrt.SamrtError)
    assert str(result.exception).startswith(message.replace("CLIP", str(clip)))
    assert sorted(path.name for path in clip.parent.iterdir() if path.is_file()) == ["clip.mp4"]


def test_a_frame_that_never_comes_fails_at_the_end(bundle_path: Path, clip: Path) -> None:
    out = clip.with_name("out.jsonl")
    result = run(clip, "-b", bundle_path, "--point", "3,2", "--point", "1,1:2@77", "-o", out)
    assert isinstance(result.exception, samrt.PromptError)
    assert "object 2 on frame 77; 30 frames of" in str(result.exception)
    assert f"kept: 30 frames in {out}" in result.stderr
    assert len(out.read_text().splitlines()) == 30


def test_without_pyav_videos_say_so_and_pictures_work(
    bundle_path: Path, tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    result = run(clip, "-b", bundle_path, "--point", "3,2", "-o", tmp_path / "out.jsonl")
    assert isinstance(result.exception, samrt.MissingExtraError)
    assert 'pip install "samrt[video]"' in str(result.exception)
    folder = tmp_path / "frames"
    folder.mkdir()
    PIL.Image.fromarray(paint(0)).save(folder / "0.png")
    result = run(folder, "-b", bundle_path, "--point", "3,2", "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 0, result.output


def test_the_second_ctrl_c_does_not_wait() -> None:
    interrupt = Interrupt()
    interrupt.note(signal.SIGINT, None)
    assert interrupt.came()
    with pytest.raises(KeyboardInterrupt):
        interrupt.note(signal.SIGINT, None)


SLOW = """
import sys, time
sys.path.insert(0, sys.argv[1])
import samrt.video
from clips import ColourTracker

class Slow(ColourTracker):
    def step(self, frame):
        print("frame", self.steps, flush=True)
        time.sleep(0.02)
        return super().step(frame)

samrt.video.VideoTracker = Slow
from samrt.cli import main
sys.argv = ["samrt", *sys.argv[2:]]
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.jsonl", "masks"])
def test_ctrl_c_finishes_the_output(bundle_path: Path, tmp_path: Path, name: str, number: int, code: int) -> None:
    clip, out = write_clip(tmp_path / "clip.mp4", 250), tmp_path / name
    command = [sys.executable, "-W", "error", "-c", SLOW, str(Path(__file__).parent / "media"), "track", str(clip)]
    command += ["-b", str(bundle_path), "--point", "3,2", "-o", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "frame 12\n":
                break
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert f"written until it was stopped: {out}" in stdout
    assert [path.name for path in tmp_path.glob(".*")] == []
    if name == "masks":
        seen = len(list(out.glob("*.png")))
    elif name == "out.jsonl":
        seen = len(out.read_text().splitlines())
    else:
        played = numbers(open_frames(out))
        seen = len(played)
        assert played == [index % 256 for index in range(seen)]
    assert 13 <= seen < 250


def test_importing_the_commands_loads_no_pyav() -> None:
    program = "import sys, samrt, samrt.cli, samrt.media; samrt.cli.build_app(); print('av' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
