"""The plan cache with real processes: builds at once, kills, full disks, and files that were changed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samrt_engines import files as files_module
from samrt_engines.errors import PlanError
from samrt_engines.tensorrt import BuildOptions, Flavour, Plan, PlanCache, PlanKey

KEY = PlanKey.of(
    onnx_sha256="ab" * 32,
    flavour=Flavour.RTX,
    version="1.7.1.116",
    gpu="any",
    capability="8.6",
    precision="fp16",
    profiles={"images": (1, 1, 8)},
    options=BuildOptions(),
)
PLAN = Plan(bytes(range(256)) * 40, KEY)

SCRIPT = """
import json, sys, time
from pathlib import Path
from samrt_engines.tensorrt import Plan, PlanCache, PlanKey

folder, log, number = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
key = PlanKey.from_json(json.loads(sys.argv[4]))

def tell(what):
    with log.open("a") as file:
        file.write(f"{what} {number}\\n")

def build():
    tell("builds")
    time.sleep(float(sys.argv[5]))
    return Plan(number.encode() * 5000, key)

plan = PlanCache(folder).get_or_build("encoder", key, build, waiting=lambda: tell("waits"))
tell("has " + plan.data[:1].decode() + " as")
"""


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


def start(cache: PlanCache, log: Path, number: int, seconds: float) -> subprocess.Popen[bytes]:
    key = json.dumps(KEY.to_json())
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(cache.folder), str(log), str(number), key, str(seconds)])


def wait_for(log: Path, line: str) -> None:
    for _ in range(1200):
        if log.exists() and line in log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{line!r} did not come")


def files(cache: PlanCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()}


def names(*suffixes: str) -> set[str]:
    return {f"encoder-{KEY.digest}.{suffix}" for suffix in suffixes}


def test_a_saved_plan_is_found(cache: PlanCache) -> None:
    entry = cache.save("encoder", PLAN)
    assert cache.load("encoder", KEY) == PLAN
    assert cache.load("encoder", KEY, sha256=PLAN.sha256) == PLAN
    assert cache.entries() == (entry,)
    assert (entry.file, entry.size, entry.sha256) == (f"encoder-{KEY.digest}.plan", 10240, PLAN.sha256)
    assert files(cache) == names("plan", "json")
    assert (cache.folder / entry.file).read_bytes() == PLAN.data


def test_no_plan(cache: PlanCache) -> None:
    assert cache.find("encoder", KEY) is None
    with pytest.raises(PlanError, match=r"encoder: there is no plan for this machine .*fix: samrt build"):
        cache.load("encoder", KEY)


def test_a_stale_plan_is_refused_with_both_sides(cache: PlanCache) -> None:
    cache.save("encoder", Plan(b"old", replace(KEY, version="1.6.0", capability="7.5")))
    cache.save("encoder", Plan(b"newer", replace(KEY, version="1.6.0")))
    cache.save("decoder", Plan(b"another graph's", replace(KEY, precision="fp32")))
    with pytest.raises(PlanError) as caught:
        cache.load("encoder", KEY)
    assert caught.value.what == "encoder: the plan is stale or foreign"
    assert caught.value.got == "TensorRT: wanted TensorRT for RTX 1.7.1.116, found TensorRT for RTX 1.6.0"
    assert caught.value.fix == "samrt build"


def change_plan(cache: PlanCache, data: bytes) -> None:
    (cache.folder / f"encoder-{KEY.digest}.plan").write_bytes(data)


def change_entry(cache: PlanCache, **changes: Any) -> None:
    path = cache.folder / f"encoder-{KEY.digest}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_damaged_plans_are_refused(cache: PlanCache) -> None:
    cache.save("encoder", PLAN)
    change_plan(cache, PLAN.data[:-1])
    with pytest.raises(PlanError, match=r"truncated or grown \| got: 10,239 bytes \| expected: 10,240 bytes"):
        cache.load("encoder", KEY)
    change_plan(cache, b"\x01" + PLAN.data[1:])
    with pytest.raises(PlanError, match="the plan was changed"):
        cache.load("encoder", KEY)


def test_a_plan_that_comes_with_its_own_checksum_is_a_strangers(cache: PlanCache) -> None:
    cache.save("encoder", Plan(b"evil", KEY))
    with pytest.raises(PlanError, match="not the one that the manifest vouches for"):
        cache.load("encoder", KEY, sha256=PLAN.sha256)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graph": "decoder"}, "the plan's description is another plan's"),
        ({"graph": "../encoder"}, "a plan's entry is malformed"),
        ({"key": replace(KEY, precision="fp32").to_json()}, "another plan's .*precision: wanted fp16, found fp32"),
        ({"key": {}}, "a plan's key is malformed"),
        ({"size": "10240"}, "a plan's entry is malformed"),
        ({"more": 1}, "a plan's entry is malformed"),
    ],
)
def test_a_changed_description_is_refused(cache: PlanCache, changes: dict[str, Any], message: str) -> None:
    cache.save("encoder", PLAN)
    change_entry(cache, **changes)
    with pytest.raises(PlanError, match=message):
        cache.load("encoder", KEY)
    assert cache.entries() == ()


def test_a_description_that_is_no_json_is_refused(cache: PlanCache) -> None:
    cache.save("encoder", PLAN)
    (cache.folder / f"encoder-{KEY.digest}.json").write_text("{" * 100_000)
    with pytest.raises(PlanError, match=r"\.json is damaged"):
        cache.load("encoder", KEY)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
@pytest.mark.parametrize("suffix", ["plan", "json"])
def test_links_are_refused(cache: PlanCache, tmp_path: Path, suffix: str) -> None:
    cache.save("encoder", PLAN)
    path = cache.folder / f"encoder-{KEY.digest}.{suffix}"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PlanError, match=r"cannot be read \| got: a link"):
        cache.load("encoder", KEY)


def test_a_damaged_plan_is_built_again(cache: PlanCache) -> None:
    cache.save("encoder", PLAN)
    change_plan(cache, b"short")
    assert cache.get_or_build("encoder", KEY, lambda: PLAN) is PLAN
    assert cache.load("encoder", KEY) == PLAN


def test_a_plan_of_another_key_is_not_kept(cache: PlanCache) -> None:
    with pytest.raises(PlanError, match=r"another plan was built \| got: precision: wanted fp16, found fp32"):
        cache.get_or_build("encoder", KEY, lambda: Plan(b"", replace(KEY, precision="fp32")))
    assert files(cache) == set()


def test_a_failed_build_leaves_nothing_and_lets_the_next_one_in(cache: PlanCache) -> None:
    def fail() -> Plan:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get_or_build("encoder", KEY, fail)
    assert files(cache) == set()
    assert cache.get_or_build("encoder", KEY, lambda: PLAN) is PLAN


def test_a_full_disk_leaves_nothing(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files_module, "_write_through", full)
        with pytest.raises(
            PlanError, match=r"cannot be written \| got: No space left on device in .*fix: free \d+ MiB"
        ):
            cache.save("encoder", PLAN)
    assert files(cache) == set()
    cache.save("encoder", PLAN)
    assert cache.load("encoder", KEY) == PLAN


def test_a_folder_that_cannot_be_written(cache: PlanCache) -> None:
    cache.folder.write_text("a file where the folder should be")
    with pytest.raises(PlanError, match=r"\.lock cannot be written \| got: (File exists|Not a directory) in "):
        cache.save("encoder", PLAN)


def test_of_two_processes_one_builds_and_the_other_waits(cache: PlanCache, tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = start(cache, log, 1, seconds=1.5)
    wait_for(log, "builds 1")
    second = start(cache, log, 2, seconds=0)
    wait_for(log, "waits 2")
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert log.read_text().splitlines() == ["builds 1", "waits 2", "has 1 as 1", "has 1 as 2"] or (
        log.read_text().splitlines() == ["builds 1", "waits 2", "has 1 as 2", "has 1 as 1"]
    )
    assert files(cache) == names("plan", "json"), "no lock is left"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_build_lets_the_next_one_in(cache: PlanCache, tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = start(cache, log, 1, seconds=600)
    wait_for(log, "builds 1")
    second = start(cache, log, 2, seconds=0)
    wait_for(log, "waits 2")
    first.send_signal(signal.SIGKILL)
    first.wait(60)
    assert second.wait(60) == 0
    assert log.read_text().splitlines() == ["builds 1", "waits 2", "builds 2", "has 2 as 2"]
    assert files(cache) == names("plan", "json")


KILLED = """
import os, signal, sys
from pathlib import Path
from samrt_engines import files
sync, calls = os.fsync, []

def sync_and_die(descriptor):
    calls.append(descriptor)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    sync(descriptor)

os.fsync = sync_and_die
import json
from samrt_engines.tensorrt import Plan, PlanCache, PlanKey
key = PlanKey.from_json(json.loads(sys.argv[3]))
PlanCache(Path(sys.argv[1])).save("encoder", Plan(b"x" * 1_000_000, key))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("again", [False, True])
def test_killed_while_writing(cache: PlanCache, at: int, again: bool) -> None:
    """At the first file's data, before its folder is synced, at the description's data; anew, or over a plan."""
    if again:
        cache.save("encoder", PLAN)
    command = [sys.executable, "-c", KILLED, str(cache.folder), str(at), json.dumps(KEY.to_json())]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert cache.find("encoder", KEY) is None
    assert cache.entries() == ()
    cache.save("encoder", PLAN)
    assert cache.load("encoder", KEY) == PLAN
    assert files(cache) == names("plan", "json"), "the killed one's leftovers are gone"


def test_a_reader_keeps_the_file_it_has_opened(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    files_module.write_whole(path, b"old" * 1000)
    with path.open("rb", buffering=0) as reader:
        files_module.write_whole(path, b"new" * 1000)
        assert reader.read() == b"old" * 1000
    assert path.read_bytes() == b"new" * 1000


def test_one_at_a_time_though_the_lock_file_comes_and_goes(tmp_path: Path) -> None:
    """Who waited for a lock file that was removed meanwhile must not get in on the strength of the removed one."""
    path, inside, most = tmp_path / "lock", [0], [0]

    def enter() -> None:
        for _ in range(15):
            with files_module.locked(path):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.002)
                inside[0] -= 1

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert not path.exists()


def test_timing_caches_are_kept_apart(cache: PlanCache) -> None:
    assert cache.load_timing(KEY, "13.0") is None
    cache.save_timing(KEY, "13.0", b"measured")
    cache.save_timing(KEY, "12.8", b"older driver")
    assert cache.load_timing(KEY, "13.0") == b"measured"
    assert cache.load_timing(replace(KEY, precision="fp32", onnx_sha256="cd" * 32), "13.0") == b"measured"
    for other in (replace(KEY, version="1.6"), replace(KEY, gpu="NVIDIA L4"), replace(KEY, capability="8.9")):
        assert cache.load_timing(other, "13.0") is None
    assert cache.entries() == ()
