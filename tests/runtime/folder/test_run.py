"""Jobs: what they write, that they go on wherever they were killed, what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from samrt import ImageError, InputError
from samrt.folder.job import ANNOTATIONS, FAILURES, JOB, open_job
from samrt.folder.pictures import Found, PictureFile
from samrt.folder.run import JobReport, run_job
from samrt.rle import decode_mask
from samrt.segments import Segments


class Redness:
    """Work that finds two masks: where red is above 100, and above 200. Counts what it was asked."""

    def __init__(self, **settings: Any):
        self.settings: Mapping[str, Any] = {"kind": "redness", "bundle": "b" * 64, **settings}
        self.batches: list[list[str]] = []

    def begin(self, found: Found) -> None:
        pass

    def asked(self, picture: PictureFile) -> str:
        return ""

    def image_id(self, picture: PictureFile) -> int | None:
        return None

    def segment(self, files: Sequence[PictureFile], pictures: Sequence[np.ndarray]) -> list[Segments]:
        self.batches.append([file.file_name for file in files])
        if any(picture.shape[1] == 13 for picture in pictures):
            raise ImageError("an unlucky picture", got="width 13")
        return [
            Segments.from_masks(np.stack([picture[..., 0] > 100, picture[..., 0] > 200]), [0.5, 0.75])
            for picture in pictures
        ]

    @property
    def asked_for(self) -> list[str]:
        return [name for batch in self.batches for name in batch]


def tree(out: Path) -> dict[str, bytes]:
    """All files below, with their content."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def run(work: Redness, folder: Path, **options: Any) -> JobReport:
    return run_job(work, folder, folder.parent / "out", formats=("png", "masks"), **options)


def test_what_is_written(folder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = run(Redness(), folder, progress=lambda *state: seen.append(state))
    out = folder.parent / "out"
    assert (report.pictures, report.done, report.kept, report.masks, report.failures) == (3, 3, 0, 6, {})
    assert report.ignored == ("notes.txt",)
    assert sorted(tree(out)) == sorted(
        ["job.json", "annotations.json"]
        + [f"{name}{end}" for name in ("2", "10", "sub/a") for end in (".json", ".png", "/0000.png", "/0001.png")]
    )
    assert [state[1:] for state in seen] == [(0, 3), (1, 3), (1, 3), (2, 3), (2, 3), (3, 3)]
    assert seen[0][0] == "2.png"
    assert seen[-1][0].startswith("sub/a.jpg · ")
    assert seen[-1][0].endswith(" pictures/s")


def test_masks_are_the_same_everywhere(folder: Path) -> None:
    run(Redness(), folder)
    out = folder.parent / "out"
    document = json.loads((out / "sub" / "a.json").read_text())
    picture = np.asarray(PIL.Image.open(folder / "sub" / "a.jpg"))
    assert document["images"] == [{"id": 1, "file_name": "sub/a.jpg", "width": 32, "height": 24}]
    assert document["categories"] == [{"id": 1, "name": "object"}]
    for index, level in enumerate((100, 200)):
        expected = picture[..., 0] > level
        assert 0 < expected.sum() < expected.size
        np.testing.assert_array_equal(decode_mask(document["annotations"][index]["segmentation"]), expected)
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(out / "sub" / "a" / f"000{index}.png")), 255 * expected)
    drawn = np.asarray(PIL.Image.open(out / "sub" / "a.png")).astype(int)
    outside = decode_mask(document["annotations"][0]["segmentation"])
    far = ~(
        outside | np.roll(outside, 1, 0) | np.roll(outside, -1, 0) | np.roll(outside, 1, 1) | np.roll(outside, -1, 1)
    )
    change = np.abs(drawn - picture).max(axis=2)
    assert np.median(change[outside]) > 20
    assert np.median(change[far]) < 5


def test_one_file_of_all(folder: Path) -> None:
    """Ids of its own, in natural order; the masks of the pictures' files."""
    run(Redness(), folder)
    out = folder.parent / "out"
    merged = json.loads((out / ANNOTATIONS).read_text())
    assert [(image["id"], image["file_name"]) for image in merged["images"]] == [
        (1, "2.png"),
        (2, "10.png"),
        (3, "sub/a.jpg"),
    ]
    assert [row["id"] for row in merged["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert [row["image_id"] for row in merged["annotations"]] == [1, 1, 2, 2, 3, 3]
    single = json.loads((out / "10.json").read_text())["annotations"]
    assert [row["segmentation"] for row in merged["annotations"][2:4]] == [row["segmentation"] for row in single]


def test_nothing_is_done_twice(folder: Path) -> None:
    run(Redness(), folder)
    before = tree(folder.parent / "out")
    again = Redness()
    report = run(again, folder)
    assert again.batches == []
    assert (report.done, report.kept, report.pictures_per_second) == (0, 3, 0)
    assert tree(folder.parent / "out") == before


@pytest.mark.parametrize(
    ("damage", "redone"),
    [
        (lambda folder, out: (out / "2.json").unlink(), ["2.png"]),
        (lambda folder, out: (out / "2.json").write_text('{"images": ['), ["2.png"]),
        (lambda folder, out: (out / "2.json").write_text("[]"), ["2.png"]),
        (lambda folder, out: (out / "2.json").write_text('{"samrt": {"fingerprint": 3}, "images": 1}'), ["2.png"]),
        (lambda folder, out: (out / "10.png").unlink(), ["10.png"]),
        (lambda folder, out: (out / "sub/a/0001.png").unlink(), ["sub/a.jpg"]),
        (lambda folder, out: shutil.copy(folder / "10.png", folder / "2.png"), ["2.png"]),
        (lambda folder, out: shutil.copy(folder / "10.png", folder / "b.png"), ["b.png"]),
        (lambda folder, out: (folder / "2.png").rename(folder / "3.png"), ["3.png"]),
        (lambda folder, out: (out / ".2.json.01234567.tmp").write_text("half"), []),
        (lambda folder, out: (out / "sub/a" / ".0000.png.01234567.tmp").write_text("half"), []),
        (lambda folder, out: (out / ".job.lock").write_text("1\n"), []),
    ],
)
def test_only_what_is_missing_is_done(folder: Path, damage: Any, redone: list[str]) -> None:
    run(Redness(), folder)
    out = folder.parent / "out"
    damage(folder, out)
    again = Redness()
    report = run(again, folder)
    assert again.asked_for == redone
    assert report.kept == report.pictures - len(redone)
    assert len(json.loads((out / ANNOTATIONS).read_text())["annotations"]) == 2 * report.pictures
    assert list(out.rglob(".*")) == []


def test_fewer_masks_than_before(folder: Path, write_picture: Any) -> None:
    """None of an earlier state are left over."""
    run(Redness(), folder)
    write_picture(folder / "2.png", 9)

    class One(Redness):
        def segment(self, files: Sequence[PictureFile], pictures: Sequence[np.ndarray]) -> list[Segments]:
            return [found[:1] for found in super().segment(files, pictures)]

    run(One(), folder)
    assert sorted(path.name for path in (folder.parent / "out" / "2").iterdir()) == ["0000.png"]


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_run import Redness, run, tree

def attempt(folder, fatal):
    \"\"\"Run in a process of its own, which is killed at a step of the file system; returns whether it was.\"\"\"
    child = os.fork()
    if child == 0:
        steps = 0
        def hook(event, arguments):
            nonlocal steps
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and "/out" in str(arguments[0]):
                steps += 1
                if steps == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        work = Redness()
        run(work, folder)
        os.write(told, (" ".join(work.asked_for) + "\\n").encode())
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0

os.fsync = lambda descriptor: None  # kills of a process lose nothing that was written
folder = Path(sys.argv[2])
out = folder.parent / "out"
heard, told = os.pipe()
run(Redness(), folder)  # here: what it imports, the children need not
whole = tree(out)
fatal = 0
while True:
    shutil.rmtree(out)
    fatal += 1
    if not attempt(folder, fatal):
        break
    left = tree(out)
    done = [name for name in ("2", "sub/a") if f"{name}.json" in left]
    for name, content in left.items():
        final = not name.rpartition("/")[2].startswith(".")
        assert not final or whole[name] == content, (fatal, name)
    for name in done:
        assert all(f"{name}{end}" in left for end in (".png", "/0000.png", "/0001.png")), (fatal, name)
    assert not attempt(folder, 0)
    asked = os.read(heard, 1000).decode().split()
    assert [name.rpartition(".")[0] for name in asked] == [one for one in ("2", "sub/a") if one not in done], fatal
    assert tree(out) == whole, fatal
print(fatal - 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of itself")
def test_killed_at_every_step_it_goes_on(folder: Path) -> None:
    """kill -9 at every step: files are whole or absent, what is done is kept, and the end is the same byte for byte."""
    (folder / "10.png").unlink()
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", KILLED, here, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 30  # moments it was killed at


def test_two_at_once_are_refused(folder: Path) -> None:
    out = folder.parent / "out"
    code = (
        "import sys; from pathlib import Path; from samrt.folder.job import open_job\n"
        "with open_job(Path(sys.argv[1]), {}, frozenset()): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(InputError, match=rf"another process is at work in .*out \| got: process {other.pid} \|"):
            run(Redness(), folder)
        other.kill()
        other.wait()
    (out / JOB).unlink()
    assert run(Redness(), folder).done == 3  # a dead process holds no lock


def test_another_job_is_refused(folder: Path) -> None:
    run(Redness(points=32), folder)
    before = tree(folder.parent / "out")
    with pytest.raises(
        InputError,
        match=r'another job was begun in .*out \| got: bundle "c", points 16 \| expected: bundle "b+", points 32 \| fix: --over',
    ):
        run(Redness(points=16, bundle="c"), folder)
    with pytest.raises(InputError, match=r"got: points not set \| expected: points 32"):
        run(Redness(), folder)
    assert tree(folder.parent / "out") == before


def test_overwrite_begins_anew(folder: Path) -> None:
    run(Redness(points=32), folder)
    out = folder.parent / "out"
    (out / "mine.txt").write_text("kept")
    (out / "mine.json").write_text('{"images": []}')
    (folder / "2.png").unlink()
    anew = Redness(points=16)
    assert run(anew, folder, overwrite=True).done == 2
    assert anew.asked_for == ["10.png", "sub/a.jpg"]
    assert sorted(tree(out)) == sorted(
        ["job.json", "annotations.json", "mine.txt", "mine.json"]
        + [f"{name}{end}" for name in ("10", "sub/a") for end in (".json", ".png", "/0000.png", "/0001.png")]
    )


def test_a_damaged_job_is_refused(folder: Path) -> None:
    run(Redness(), folder)
    (folder.parent / "out" / JOB).write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*job.json \| got: not a job of samrt .* fix: --overwrite"):
        run(Redness(), folder)
    assert run(Redness(), folder, overwrite=True).done == 3


def test_a_folder_of_others_is_not_written_to(folder: Path) -> None:
    before = tree(folder)
    with pytest.raises(InputError, match="the pictures lie in the output folder"):
        run_job(Redness(), folder, folder)
    with pytest.raises(InputError, match=r"got: a folder that holds 5 other files, '.hidden.png' among them"):
        run_job(Redness(), folder / "2.png", folder, overwrite=True)
    with pytest.raises(InputError, match=r"notes.txt \| got: a file \| expected: a folder"):
        run_job(Redness(), folder, folder / "notes.txt")
    assert tree(folder) == before


def test_the_output_may_lie_among_the_pictures(folder: Path) -> None:
    for kept in (0, 3):  # overlays of the first run are no pictures of the second
        report = run_job(Redness(), folder, folder / "out")
        assert (report.pictures, report.kept) == (3, kept)


def test_a_picture_that_fails(folder: Path, write_picture: Any) -> None:
    out = folder.parent / "out"
    (folder / "3.png").write_bytes(b"not a picture")
    write_picture(folder / "4.png", 3, (24, 13))
    first = Redness()
    report = run(first, folder, batch=4)
    assert first.batches == [["2.png", "4.png", "10.png", "sub/a.jpg"], ["2.png"], ["4.png"], ["10.png"], ["sub/a.jpg"]]
    assert report.done == 3
    assert report.failures["4.png"] == "an unlucky picture | got: width 13"
    assert "3.png | got: not a picture of a known format" in report.failures["3.png"]
    assert {row["file_name"]: row["code"] for row in json.loads((out / FAILURES).read_text())["failures"]} == {
        "3.png": "image",
        "4.png": "image",
    }
    assert len(json.loads((out / ANNOTATIONS).read_text())["images"]) == 3
    write_picture(folder / "3.png", 7)
    (folder / "4.png").unlink()
    second = Redness()
    assert run(second, folder).failures == {}
    assert second.asked_for == ["3.png"]
    assert not (out / FAILURES).exists()


def test_results_of_what_the_picture_was_do_not_stay(folder: Path) -> None:
    run(Redness(), folder)
    (folder / "2.png").write_bytes(b"broken now")
    assert list(run(Redness(), folder).failures) == ["2.png"]
    assert not [name for name in tree(folder.parent / "out") if name.startswith("2")]


def test_a_full_disk_ends_the_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = os.fsync, []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 10:  # each file, and its folder
            raise OSError(28, "No space left on device")
        write(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*10\S*png \| got: No space left on device"):
        run(Redness(), folder)
    monkeypatch.undo()
    assert list((folder.parent / "out").rglob(".*")) == []
    report = run(Redness(), folder)
    assert (report.done, report.kept) == (2, 1)  # the first picture was whole


def test_pictures_encoded_together(folder: Path) -> None:
    work = Redness()
    run(work, folder, batch=2)
    assert work.batches == [["2.png", "10.png"], ["sub/a.jpg"]]


def test_one_picture(folder: Path) -> None:
    out = folder.parent / "out"
    assert run_job(Redness(), folder / "2.png", out).done == 1
    assert run_job(Redness(), folder / "10.png", out).done == 1
    assert sorted(tree(out)) == ["10.json", "10.png", "2.json", "2.png", "job.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["coco", "gif"]}, r"unknown format \| got: 'gif' \| expected: coco, png, masks"),
        ({"batch": 0}, r"batch must be 1 or more \| got: 0"),
    ],
)
def test_wrong_options(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_job(Redness(), folder, folder.parent / "out", **options)
    assert not (folder.parent / "out").exists()


def test_a_job_without_a_folder_for_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write to"), open_job(tmp_path / "file" / "out", {}, frozenset()):
        pass
