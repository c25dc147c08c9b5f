"""DLPack, in and out, through ctypes: how arrays of one library become another's without a copy.

The layout is DLPack's unversioned one (`DLManagedTensor`, capsules named "dltensor"), which every library speaks.
https://dmlc.github.io/dlpack/latest/c_api.html
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import numpy as np

CPU, CUDA, CUDA_MANAGED = 1, 2, 13
"""DLPack's numbers of device types."""

_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # numpy's kind of dtype -> DLPack's
_KINDS = {code: kind for kind, code in _CODES.items()}
_NAME = b"dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_DESTRUCTOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

# Declared here, on function objects of our own: ctypes.pythonapi is shared by the whole process.
_capsule_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_capsule_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

_lent: dict[int, tuple[Any, ...]] = {}  # what a consumer still uses: number -> structure, its arrays, the owner
_numbers = itertools.count(1)


def export_capsule(
    address: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: tuple[int, int], owner: object
) -> object:
    """A capsule of C-contiguous memory. `owner` stays alive until the consumer is done, or the capsule unused is gone."""
    number = next(_numbers)
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    managed = _Managed()
    managed.tensor.data = address
    managed.tensor.device_type, managed.tensor.device_id = device
    managed.tensor.ndim = len(shape)
    managed.tensor.code, managed.tensor.bits, managed.tensor.lanes = _CODES[dtype.kind], dtype.itemsize * 8, 1
    managed.tensor.shape = ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))
    managed.context = number
    managed.deleter = ctypes.cast(_delete_callback, ctypes.c_void_p)
    _lent[number] = (managed, sizes, owner)
    return _capsule_new(ctypes.addressof(managed), _NAME, ctypes.cast(_destroy_callback, ctypes.c_void_p))


def read_capsule(capsule: object) -> tuple[int, tuple[int, ...], np.dtype[Any], tuple[int, ...] | None]:
    """Address, shape, dtype and strides (in elements, None for C order) of a capsule, which stays its owner.

    Keep the capsule as long as the memory is used: when it goes, it gives the memory back. Raises ValueError for a
    capsule that was consumed and for dtypes numpy does not know.
    """
    if not _capsule_is_valid(id(capsule), _NAME):
        raise ValueError("not a DLPack capsule, or one that was consumed")
    tensor = _Managed.from_address(_capsule_pointer(id(capsule), _NAME)).tensor
    if tensor.lanes != 1 or tensor.code not in _KINDS:
        raise ValueError(f"DLPack type code {tensor.code} with {tensor.lanes} lanes")
    kind, bits = _KINDS[tensor.code], tensor.bits
    dtype = np.dtype(np.bool_) if kind == "b" else np.dtype(f"{kind}{bits // 8}")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    strides = tuple(tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None
    return (tensor.data or 0) + tensor.byte_offset, shape, dtype, strides


def _delete(managed: int) -> None:
    """A consumer is done."""
    _lent.pop(_Managed.from_address(managed).context, None)


def _destroy(capsule: int) -> None:
    """A capsule goes. One that was consumed has another name by then, and the consumer calls the deleter."""
    if _capsule_is_valid(capsule, _NAME):
        _delete(_capsule_pointer(capsule, _NAME))


_delete_callback = _DELETER(_delete)
_destroy_callback = _DESTRUCTOR(_destroy)
