import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import samrt
from samrt import BundleError, ChecksumError, ManifestError, UnsafePathError
from samrt.bundle import open_bundle
from samrt.manifest import FileRecord, Form

ENCODER = "image_encoder.onnx"


def load(path: Path) -> None:
    samrt.load(path, threads=1).close()


def edit(path: Path, change: Callable[[dict], None]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def first_form(path: Path, **changes: object) -> None:
    edit(path, lambda manifest: manifest["graphs"]["image_encoder"]["forms"][0].update(changes))


def test_a_sound_bundle(bundle_path: Path) -> None:
    bundle = open_bundle(str(bundle_path))
    form = bundle.manifest.graphs["image_encoder"].forms[0]
    assert bundle.read_model(form) == (bundle_path / ENCODER).read_bytes()
    assert len(bundle.digest) == 64
    load(bundle_path)


def test_the_folder_itself_may_be_a_link(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(bundle_path)
    load(tmp_path / "latest")


def test_a_file_in_a_folder_of_the_bundle(bundle_path: Path) -> None:
    (bundle_path / "graphs").mkdir()
    (bundle_path / ENCODER).rename(bundle_path / "graphs" / ENCODER)
    first_form(bundle_path, file=f"graphs/{ENCODER}")
    load(bundle_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot open the bundle \| got: no such folder: .*\| fix: samrt export"):
        load(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="is not a folder"):
        load(tmp_path / "file")


def test_no_manifest(bundle_path: Path) -> None:
    (bundle_path / "manifest.json").unlink()
    with pytest.raises(
        ManifestError, match=r"no manifest.json in .*\| expected: a folder that `samrt export` finished"
    ):
        load(bundle_path)


def test_a_truncated_manifest(bundle_path: Path) -> None:
    text = (bundle_path / "manifest.json").read_bytes()
    (bundle_path / "manifest.json").write_bytes(text[: len(text) // 2])
    with pytest.raises(ManifestError, match="expected: JSON in UTF-8"):
        load(bundle_path)


def test_a_huge_manifest_is_not_read(bundle_path: Path) -> None:
    with (bundle_path / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte by its size, nothing on disk
    with pytest.raises(ManifestError, match=r"manifest.json is too large \| got: 1099511627776 bytes"):
        load(bundle_path)


def test_an_unknown_version(bundle_path: Path) -> None:
    edit(bundle_path, lambda manifest: manifest.update(version=7))
    with pytest.raises(ManifestError, match=r"got: version 7 \| expected: version 1"):
        load(bundle_path)


def test_a_changed_byte(bundle_path: Path) -> None:
    model = bytearray((bundle_path / ENCODER).read_bytes())
    model[len(model) // 2] ^= 1
    (bundle_path / ENCODER).write_bytes(model)
    with pytest.raises(
        ChecksumError, match=rf"{ENCODER} differs from the manifest \| got: \d+ bytes, sha256 [0-9a-f]+"
    ):
        load(bundle_path)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_changed_size(bundle_path: Path, change: int) -> None:
    model = (bundle_path / ENCODER).read_bytes()
    (bundle_path / ENCODER).write_bytes(model[:change] if change < 0 else model + b"\0")
    with pytest.raises(ChecksumError, match=f"got: {len(model) + change} bytes, .* expected: {len(model)} bytes"):
        load(bundle_path)


def test_a_missing_graph_file(bundle_path: Path) -> None:
    (bundle_path / ENCODER).unlink()
    with pytest.raises(
        BundleError, match=rf"the bundle is incomplete \| got: no file {ENCODER} in .*\| fix: download or"
    ):
        load(bundle_path)


def test_a_missing_graph(bundle_path: Path) -> None:
    edit(bundle_path, lambda manifest: manifest["graphs"].pop("prompt_encoder"))
    with pytest.raises(ManifestError, match="no prompt_encoder among image_encoder, mask_decoder"):
        load(bundle_path)


@pytest.mark.parametrize("file", ["../outside.onnx", "/etc/passwd", "graphs/../../outside.onnx"])
def test_a_path_out_of_the_folder(bundle_path: Path, tmp_path: Path, file: str) -> None:
    shutil.copy(bundle_path / ENCODER, tmp_path / "outside.onnx")
    first_form(bundle_path, file=file)
    with pytest.raises(UnsafePathError, match=r"graphs.image_encoder.forms\[0\].file"):
        load(bundle_path)


def test_a_linked_file(bundle_path: Path, tmp_path: Path) -> None:
    (bundle_path / ENCODER).rename(tmp_path / "outside.onnx")
    (bundle_path / ENCODER).symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(UnsafePathError, match=f"got: '{ENCODER}' is a symbolic link"):
        load(bundle_path)


def test_a_dangling_link(bundle_path: Path) -> None:
    (bundle_path / ENCODER).unlink()
    (bundle_path / ENCODER).symlink_to("nowhere")
    with pytest.raises(UnsafePathError, match="is a symbolic link"):
        load(bundle_path)


def test_a_linked_folder(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (bundle_path / ENCODER).rename(tmp_path / "outside" / ENCODER)
    (bundle_path / "graphs").symlink_to(tmp_path / "outside")
    first_form(bundle_path, file=f"graphs/{ENCODER}")
    with pytest.raises(UnsafePathError, match="got: 'graphs' is a symbolic link"):
        load(bundle_path)


def test_a_hard_link(bundle_path: Path, tmp_path: Path) -> None:
    os.link(bundle_path / ENCODER, tmp_path / "outside.onnx")
    with pytest.raises(UnsafePathError, match="a hard link: the file has 2 names"):
        load(bundle_path)


def test_a_linked_manifest(bundle_path: Path, tmp_path: Path) -> None:
    (bundle_path / "manifest.json").rename(tmp_path / "manifest.json")
    (bundle_path / "manifest.json").symlink_to(tmp_path / "manifest.json")
    with pytest.raises(UnsafePathError, match=r"'manifest.json' is a symbolic link"):
        load(bundle_path)


def test_a_pipe_does_not_hang(bundle_path: Path) -> None:
    (bundle_path / ENCODER).unlink()
    os.mkfifo(bundle_path / ENCODER)
    with pytest.raises(UnsafePathError, match="not a regular file"):
        load(bundle_path)


def test_a_folder_in_place_of_a_file(bundle_path: Path) -> None:
    (bundle_path / ENCODER).unlink()
    (bundle_path / ENCODER).mkdir()
    with pytest.raises(UnsafePathError, match="not a regular file"):
        load(bundle_path)


def test_a_file_in_place_of_a_folder(bundle_path: Path) -> None:
    first_form(bundle_path, file="mask_decoder.onnx/x.onnx")
    with pytest.raises(BundleError, match="Not a directory"):
        load(bundle_path)


def test_a_graph_that_is_not_what_the_manifest_says(bundle_path: Path) -> None:
    manifest = json.loads((bundle_path / "manifest.json").read_text())
    decoder = manifest["graphs"]["mask_decoder"]["forms"][0]
    first_form(bundle_path, **{key: decoder[key] for key in ("file", "sha256", "size")})
    with pytest.raises(samrt.BackendError, match="image_encoder"):
        load(bundle_path)


def with_data(bundle_path: Path) -> tuple[samrt.bundle.Bundle, Form]:
    """A form with external data, which is handed on by path."""
    import hashlib

    content = b"weights" * 1000
    (bundle_path / "weights.bin").write_bytes(content)
    record = FileRecord("weights.bin", hashlib.sha256(content).hexdigest(), len(content))
    bundle = open_bundle(bundle_path)
    form = bundle.manifest.graphs["image_encoder"].forms[0]
    return bundle, Form(form.file, (record,), form.precision, form.targets, form.opset, form.parity)


def test_external_data_goes_by_path(bundle_path: Path) -> None:
    bundle, form = with_data(bundle_path)
    assert bundle.read_model(form) == bundle_path / ENCODER


def test_changed_external_data(bundle_path: Path) -> None:
    bundle, form = with_data(bundle_path)
    (bundle_path / "weights.bin").write_bytes(b"Weights" * 1000)
    with pytest.raises(ChecksumError, match=r"weights.bin differs"):
        bundle.read_model(form)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_model_with_data_may_not_lie_beside_links(bundle_path: Path, tmp_path: Path, link: Callable) -> None:
    """The model file may name data the manifest does not: a backend that follows links would load it."""
    bundle, form = with_data(bundle_path)
    (tmp_path / "secret").write_text("secret")
    (bundle_path / "plans").mkdir()
    link(tmp_path / "secret", bundle_path / "plans" / "extra.bin")
    with pytest.raises(UnsafePathError, match=r"extra.bin"):
        bundle.read_model(form)
