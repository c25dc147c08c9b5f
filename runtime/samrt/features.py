"""What the image encoder makes of pictures: computed once, used for any number of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from samrt.flow import DeviceTensors, Tensor
from samrt_engines.errors import ImageError


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """The features of B pictures, from `Model.encode`. Immutable, may be shared between threads, pickled and cached.

    A picture at 1024 x 1024 in SAM 2 takes 22 MiB (see `nbytes`): 4 for image_embed, 6 for what the decoder's first layer
    makes of it, 8 and 4 for the two finer maps.

    They live as long as this object, whatever becomes of the model. Those of a model on a GPU lie there, where `decode`
    reads them without a copy, and hold that memory; `to_host` gives the same features in host memory, and pickling
    makes such a copy. A list of pictures longer than the encoder's largest batch has its features on the host.
    """

    tensors: Mapping[str, NDArray[Any]]
    """By the encoder's output names; the first axis is the picture. Read-only arrays. Of features on a GPU, each is copied
    to the host when it is first read here, and kept."""
    image_hw: tuple[tuple[int, int], ...]
    """Height and width of each picture, in original pixels."""
    model_digest: str
    """Which bundle made them; another one refuses them."""
    provider: str
    """What the encoder really ran on: "CPUExecutionProvider"."""
    precision: str
    """The precision of the encoder graph that ran: "fp32"."""

    def __len__(self) -> int:
        """The number of pictures, B."""
        return len(self.image_hw)

    def __getitem__(self, index: int) -> Features:
        """The features of one picture (B = 1); no copy. Raises ImageError for a picture that is not there."""
        if not -len(self) <= index < len(self):
            raise ImageError("no such picture", got=f"index {index}", expected=f"0 to {len(self) - 1}")
        index %= len(self)
        part = slice(index, index + 1)
        if isinstance(self.tensors, DeviceTensors):
            tensors: Mapping[str, NDArray[Any]] = self.tensors.rows(index, index + 1)
        else:
            tensors = {name: tensor[part] for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors, image_hw=self.image_hw[part])

    def __iter__(self) -> Iterator[Features]:
        return (self[index] for index in range(len(self)))

    @property
    def nbytes(self) -> int:
        """Memory the tensors take where they are, in bytes."""
        if isinstance(self.tensors, DeviceTensors):
            return self.tensors.nbytes
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def device(self) -> str:
        """Where the tensors are: "cpu" or "cuda:N"."""
        return self.tensors.device if isinstance(self.tensors, DeviceTensors) else "cpu"

    def to_host(self) -> Features:
        """The same features in host memory, to keep many of them or to send them somewhere; themselves if they are."""
        return replace(self, tensors=dict(self.tensors)) if isinstance(self.tensors, DeviceTensors) else self

    def feeds(self, device: str) -> Mapping[str, Tensor]:
        """The tensors for a graph that runs on `device` ("cpu", "cuda:N"): as they are if they are there, else the host's."""
        if isinstance(self.tensors, DeviceTensors) and self.tensors.device == device:
            return self.tensors.arrays
        return self.tensors
