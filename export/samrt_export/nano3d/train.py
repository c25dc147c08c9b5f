"""Trains nano 3D from nothing: ``python -m samrt_export.nano3d.train --out nano3d.safetensors --run FOLDER``.

Every object, photograph and noise follows from the step, so a run can be cut and resumed and comes to the same place (up to the
machine's floating-point order). About half an hour of one processor core. All stages but the last, which goes on from ``flows``,
do not depend on one another and may run side by side on one folder (``--stage``); ``--out`` is written from what is there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from samrt_export.families.sam3d.decoders import SlatDecoderGs, SlatDecoderMesh
from samrt_export.families.sam3d.folder import ENCODERS
from samrt_export.families.sam3d.model import Sam3d
from samrt_export.nano3d.config import CONFIG
from samrt_export.nano3d.decoder_stages import gaussian_decoder_stage, mesh_decoder_stage, structure_decoder_stage
from samrt_export.nano3d.examples import load_examples
from samrt_export.nano3d.flow_stage import flow_stage
from samrt_export.nano3d.gather_conv import gather_gradients
from samrt_export.nano3d.initial import initialise
from samrt_export.nano3d.training import Stage, averaged_weights, part_of, run_stage

EXAMPLES = 1500

HANDFUL = 8
"""Photographs, from seed 0 on, that the flows learn by heart at last: those that a demonstration shows."""
STAGES = ("structure_decoder", "mesh_decoder", "slat_decoder_gs", "slat_decoder_gs_4", "flows", "handful")
"""In this order: a later stage's weights take the place of an earlier one's."""


def make_stage(name: str, model: Sam3d, folder: Path) -> Stage:
    """One of STAGES. folder: where examples are kept."""
    if name == "structure_decoder":
        return structure_decoder_stage(model.ss_decoder)
    if name == "mesh_decoder":
        return mesh_decoder_stage(part_of(model.slat_decoder_mesh, SlatDecoderMesh))
    if name == "flows":
        return flow_stage(name, model, load_examples(EXAMPLES, folder), 1200, 1.5e-3)
    if name == "handful":
        model.load_state_dict(averaged_weights("flows", folder), strict=False)
        return flow_stage(name, model, load_examples(HANDFUL, folder), 900, 1.5e-3)
    return gaussian_decoder_stage(name, part_of(model.get_submodule(name), SlatDecoderGs))


def new_model() -> Sam3d:
    """The model before the first step of any stage."""
    model = Sam3d(CONFIG)
    initialise(model)
    return model


def write_checkpoint(model: Sam3d, folder: Path, out: Path) -> None:
    """The averaged weights of every stage that has run, in float16, under the names of the module.

    The image encoder, which stands under four names, is written under its first.
    """
    average = {name: value for stage in STAGES for name, value in averaged_weights(stage, folder).items()}
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(ENCODERS[1:])}
    save_file({name: average.get(name, value).half().contiguous() for name, value in state.items()}, out)


def main() -> None:
    """Command line of the training run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the checkpoint goes")
    parser.add_argument(
        "--run", type=Path, default=Path("nano3d-run"), help="checkpoints and examples, resumed if there"
    )
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this one; may be repeated")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.run.mkdir(parents=True, exist_ok=True)
    model = new_model()
    gather_gradients(model)
    for name in arguments.stage or STAGES:
        run_stage(make_stage(name, model, arguments.run), arguments.run)
    write_checkpoint(new_model(), arguments.run, arguments.out)


if __name__ == "__main__":
    main()
