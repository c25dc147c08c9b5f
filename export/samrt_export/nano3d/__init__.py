"""nano 3D: the architecture of SAM 3D Objects at toy width, trained here on coloured shapes that formulas describe.

``shapes`` are the objects, ``rendering`` photographs them, ``targets`` says what every network should answer,
``train`` makes ``nano3d.safetensors`` (module names of `samrt_export.families.sam3d`), ``evaluate`` measures it on held-out ones.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).with_name("nano3d.safetensors")
"""The trained weights, stored in float16."""
