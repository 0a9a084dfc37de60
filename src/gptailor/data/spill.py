"""Arrays that may outgrow the memory: in unnamed files, mapped, so that the system may drop their pages."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from gptailor.errors import DataError

Number = TypeVar("Number", bound=np.generic)


class Spill(Generic[Number]):
    """An array that only grows. What was read from it outlives it, and goes with the last reader."""

    def __init__(self, dtype: type[Number]) -> None:
        self._dtype = dtype
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed on exit)
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, values: npt.NDArray[Number]) -> None:
        """Adds the values, flattened.

        Raises:
            DataError: the temporary folder is full.
        """
        with told():
            self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._size += values.size

    def read(self) -> npt.NDArray[Number]:
        """(size,) everything that was added so far."""
        if not self._size:
            return np.empty(0, self._dtype)
        with told():
            self._file.flush()
            return np.memmap(self._file, self._dtype, mode="r", shape=(self._size,)).view(np.ndarray)


def scratch(shape: tuple[int, ...], dtype: type[Number]) -> npt.NDArray[Number]:
    """An array of a known shape, to be filled.

    Raises:
        DataError: the temporary folder is full.
    """
    size = int(np.prod(shape))
    if not size:
        return np.empty(shape, dtype)
    with told(), tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):  # a full disk must be told here, not by a signal later
            os.posix_fallocate(file.fileno(), 0, size * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, mode="w+", shape=shape).view(np.ndarray)


@contextmanager
def told() -> Iterator[None]:
    """Turns what the disk may do to us into a message."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"can't be written: {error.strerror or error}.",
            where=tempfile.gettempdir(),
            fix="Free some space there, or set TMPDIR to a folder that has some.",
        ) from None
