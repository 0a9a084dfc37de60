"""Parquet files, in small batches, with limits on what they may unfold to."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from gptailor.data.layout import unique_names
from gptailor.data.lines import MAX_COLUMNS, Item
from gptailor.data.source import Source, read_whole
from gptailor.data.streams import EXPANSION_ALLOWANCE, MAX_BYTES, MAX_EXPANSION
from gptailor.data.values import BadValueError, as_text
from gptailor.errors import DataError
from gptailor.types import RawExample, RejectedRow

MAX_ROWS_PER_BYTE = 100  # a file with more (and more than a million) is a bomb of repetitions
BATCH_ROWS = 8192


def read_parquet(source: Source) -> tuple[list[str], list[str], Iterator[Item]]:
    """Columns, notes and rows of a Parquet file.

    Raises:
        DataError: it is damaged, or claims more rows, columns or bytes than its size allows.
    """
    notes: list[str] = []
    whole = None if _is_plain_file(source) else read_whole(source)
    try:
        with closing(_open(source, whole)) as handle:
            file = _parquet_file(handle, [])
            metadata, schema = file.metadata, file.schema_arrow
    except Exception as error:  # pyarrow raises many kinds for damaged files
        raise _damaged(source, error) from None
    _refuse_bomb(source, metadata)
    names = unique_names([name.strip() for name in schema.names], notes)
    texts = [field.name for field in schema if _is_text(field.type)]
    return names, [*notes, f"format: Parquet, {metadata.num_rows:,} rows"], _rows(source, whole, names, texts)


def _is_plain_file(source: Source) -> bool:
    if not source.repeatable:
        return False
    with closing(source.open()) as stream:
        return stream.seekable()


def _open(source: Source, whole: bytes | None) -> BinaryIO:
    return source.open() if whole is None else io.BytesIO(whole)


def _parquet_file(handle: BinaryIO, texts: list[str]) -> Any:
    return pyarrow.parquet.ParquetFile(
        handle, read_dictionary=texts, thrift_string_size_limit=10**8, thrift_container_size_limit=10**6
    )


def _is_text(kind: Any) -> bool:
    types = pyarrow.types
    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_binary))


def _damaged(source: Source, error: Exception) -> DataError:
    return DataError(
        f"is damaged or not Parquet: {str(error).strip() or type(error).__name__}",
        where=source.name,
        fix="Copy or write it again.",
    )


def _allowed(source: Source) -> int:
    """How many bytes a file may unfold to; a stream's size isn't known beforehand."""
    if not source.size:
        return MAX_BYTES
    return min(MAX_BYTES, max(EXPANSION_ALLOWANCE, MAX_EXPANSION * source.size))


def _refuse_bomb(source: Source, metadata: Any) -> None:
    """Judges by what the file says of itself, before any of it is unpacked."""
    rows, columns = metadata.num_rows, metadata.num_columns
    unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    too_many = source.size and rows > max(10**6, MAX_ROWS_PER_BYTE * source.size)
    if too_many or unpacked > _allowed(source) or columns > MAX_COLUMNS:
        raise _bomb(source, f"claims {rows:,} rows, {columns:,} columns and {unpacked:,} bytes unpacked")


def _bomb(source: Source, what: str) -> DataError:
    return DataError(
        f"{what}, from {source.size:,} bytes stored; refused as a decompression bomb.",
        where=source.name,
        fix="Write the file again without such repetitions.",
    )


def _rows(source: Source, whole: bytes | None, names: list[str], texts: list[str]) -> Iterator[Item]:
    """Rows in order. Repetitions unfold from next to nothing, so the characters that come out are counted."""
    allowed, row, unfolded = _allowed(source), 0, 0
    with closing(_open(source, whole)) as handle:
        for columns in _batches(source, handle, texts, allowed):
            for cells in zip(*columns, strict=True):
                row += 1
                try:
                    fields = {name: as_text(cell) for name, cell in zip(names, cells, strict=True)}
                except BadValueError as error:
                    yield RejectedRow(source.name, row, "unreadable", str(error))
                    continue
                unfolded += sum(map(len, fields.values()))
                if unfolded > allowed:
                    raise _bomb(source, f"unfolds to more than {unfolded:,} characters by row {row:,}")
                yield RawExample(fields, source.name, row)


def _batches(source: Source, handle: BinaryIO, texts: list[str], allowed: int) -> Iterator[list[list[Any]]]:
    """The columns of each batch as Python values. Texts come as dictionaries, so equal ones are one."""
    batch: Any = None
    try:
        batches = _parquet_file(handle, texts).iter_batches(batch_size=BATCH_ROWS)
        while (batch := next(batches, None)) is not None and batch.nbytes <= allowed:
            yield [_values(column) for column in batch.columns]
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise _damaged(source, error) from None
    if batch is not None:
        raise _bomb(source, f"unfolds to {batch.nbytes:,} bytes in {batch.num_rows:,} rows")


def _values(column: Any) -> list[Any]:
    """A column as Python values; text stays bytes, so that a value that isn't UTF-8 costs one row only."""
    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        used = column.indices.unique()  # a batch may come with the dictionary of the whole file
        words = dict(zip(used.to_pylist(), _values(column.dictionary.take(used)), strict=True))
        return [words[place] for place in column.indices.to_pylist()]
    if pyarrow.types.is_string(kind):
        column = column.view(pyarrow.binary())
    elif pyarrow.types.is_large_string(kind):
        column = column.view(pyarrow.large_binary())
    elif pyarrow.types.is_temporal(kind):
        return _moments(column)
    values: list[Any] = column.to_pylist()
    return values


def _moments(column: Any) -> list[Any]:
    """Times as Python has them; as text where it has none: nanoseconds, and years beyond 9999."""
    kind = column.type
    if getattr(kind, "unit", "") != "ns":
        with suppress(ValueError, OverflowError):
            return list(column.to_pylist())
    plain = column.cast(pyarrow.int64()) if pyarrow.types.is_duration(kind) else column
    return list(plain.cast(pyarrow.string()).to_pylist())
