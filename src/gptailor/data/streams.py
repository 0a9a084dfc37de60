"""Byte streams: unpacked on the way with a limit on what may come out, or with a head put back in front."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import BinaryIO, cast

from gptailor.errors import DataError

MAX_BYTES = 20 * 10**9  # of a compressed file, once expanded
MAX_EXPANSION = 400  # text shrinks 3- to 30-fold; deflate reaches 1,030 on a bomb of zeros
EXPANSION_ALLOWANCE = 16 * 2**20  # bytes that may come out before the expansion is judged


class _Metered:
    """Hands out a compressed file in small bites and counts them, so that a bomb shows early."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.consumed = raw, 0

    def read(self, size: int = -1) -> bytes:
        data = self.raw.read(min(size, 16384) if size > 0 else 16384)
        self.consumed += len(data)
        return data


class Unpacked(io.RawIOBase):
    """The unpacked bytes of a gzip stream; refuses bombs and damage with a `DataError`."""

    def __init__(self, raw: BinaryIO, name: str) -> None:
        self._raw, self._name = raw, name
        self._metered = _Metered(raw)
        self._gzip = gzip.GzipFile(fileobj=cast(BinaryIO, self._metered), mode="rb")
        self._produced = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer)).cast("B")
        try:
            data = self._gzip.read(len(view))
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(
                f"is damaged gzip: {error}.", where=self._name, fix="Copy or download it again."
            ) from None
        view[: len(data)] = data
        self._produced += len(data)
        grown = self._produced / max(self._metered.consumed, 1)
        if self._produced > MAX_BYTES or (self._produced > EXPANSION_ALLOWANCE and grown > MAX_EXPANSION):
            raise DataError(
                f"unpacks to more than {self._produced:,} bytes, {grown:,.0f} times what is stored; "
                "refused as a decompression bomb.",
                where=self._name,
                fix=f"Unpack it yourself if you trust it; the limits are {MAX_EXPANSION}-fold and "
                f"{MAX_BYTES:,} bytes.",
            )
        return len(data)

    def close(self) -> None:
        self._gzip.close()
        self._raw.close()
        super().close()


class Prefixed(io.RawIOBase):
    """A stream that can't seek, with the bytes already read from it put back in front."""

    def __init__(self, head: bytes, rest: BinaryIO, *, ours: bool) -> None:
        self._head, self._rest, self._ours = memoryview(head), rest, ours

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer)).cast("B")
        data = self._head[: len(view)] if self._head else memoryview(self._rest.read(len(view)))
        self._head = self._head[len(data) :]
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if self._ours:
            self._rest.close()
        super().close()
