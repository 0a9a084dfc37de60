"""Data sets of the Hugging Face hub. `datasets` is imported only here, when asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from gptailor.data.lines import Item
from gptailor.data.values import BadValueError, as_text
from gptailor.errors import DataError, MissingExtraError, number_of
from gptailor.types import RawExample, RejectedRow


def read_hub(location: str, *, streaming: bool) -> tuple[list[str], list[str], Iterator[Item]]:
    """Columns, notes and rows of `hub:owner/name/configuration:split`; the last two may be left out (train).

    Raises:
        MissingExtraError: `datasets` isn't installed.
        DataError: the data set can't be loaded.
    """
    path, _, split = location.removeprefix("hub:").partition(":")
    parts = path.split("/")
    name, configuration = "/".join(parts[:2]), "/".join(parts[2:]) or None
    try:
        import datasets  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise MissingExtraError("datasets", "hub") from None
    from huggingface_hub import constants

    # Nothing phones home: the one tells versions, the other counts downloads on another host.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        data = datasets.load_dataset(name, configuration, split=split or "train", streaming=streaming)
        features = dict(data.features or {})
    except Exception as error:  # the library, the network and the data set's files each raise their own
        raise DataError(
            f"can't be loaded: {error}", where=location, fix="Check the name, the split and the network."
        ) from None
    notes = [f"hub: {path}, split {split or 'train'}"]
    return list(features), notes, _rows(location, data, features)


def _rows(location: str, data: Any, features: dict[str, Any]) -> Iterator[Item]:
    names_of_labels = {
        column: list(names) for column, feature in features.items() if (names := _names_of(feature))
    }
    for row, record in enumerate(_records(location, data), start=1):
        try:
            fields = {column: _text(value, names_of_labels.get(column)) for column, value in record.items()}
        except BadValueError as error:
            yield RejectedRow(location, row, "unreadable", str(error))
        else:
            yield RawExample(fields, location, row)


def _records(location: str, data: Any) -> Iterator[dict[str, Any]]:
    rows = iter(data)
    for read in itertools.count():
        try:
            record = next(rows)
        except StopIteration:
            return
        except Exception as error:  # the network goes away, or a column of pictures asks for their decoder
            raise DataError(
                f"can't be read on after {number_of(read, 'row')}: {error}",
                where=location,
                fix="Run the same command again. If it ends there again, give the data set as a file.",
            ) from None
        yield record


def _names_of(feature: Any) -> Sequence[str] | None:
    """The names of a class number, or of the numbers in a list."""
    names: Sequence[str] | None = getattr(feature, "names", None)
    return names or getattr(getattr(feature, "feature", None), "names", None)


def _text(value: Any, names: list[str] | None) -> str:
    """A value as text; a class number becomes the class's name, and -1 (unknown) nothing."""
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else ""
    if names is not None and isinstance(value, list):
        value = [name for number in value if (name := _text(number, names))]
    return as_text(value)
