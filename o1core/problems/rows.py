"""The rows of a problem file, whatever its format: a JSON list, JSONL, CSV, parquet, and each but parquet gzipped too.

Every row comes as an object with the place that an error names. Numbers keep the digits that the file has. Parquet and
gzip are known by their first bytes, CSV by its name's ending. Files come from strangers: what is unpacked is bounded, and
rows are read a few at a time.
"""

import csv
import decimal
import gzip
import importlib.util
import io
import itertools
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import UserError
from ..files import MAX_JSON_BYTES, decode, open_regular, parse_json

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".ndjson", ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
MAX_LINE_BYTES = 32 << 20  # of a problem of JSONL
MAX_CELL = 16 << 20  # characters of a CSV's cell
MAX_UNPACKED = 4 << 30  # bytes of what a packed file comes to
PARQUET_ROWS = 64  # read at a time: a few bytes can stand for many rows of a long text
HOW_TO_FIX = "fix or delete it (a file is one JSON list, or JSONL with one whole object a line)"


class Number(str):
    """A number of a file, as the file spells it."""


def rows_of(path: Path) -> Iterator[tuple[str, object]]:
    """Yields (where, row), with `where` as an error names it: "FILE, line 3". Raises UserError where the file is missing,
    damaged, too large or of no format that is read."""
    with open_regular(path) as file:
        if file.read(4) == b"PAR1":
            yield from ((where, plain(row)) for where, row in parquet_rows(path))
            return
        file.seek(0)
        if file.read(2) != b"\x1f\x8b":
            file.seek(0)
            yield from _text_rows(file, path, path.suffix)
            return
        file.seek(0)
        try:
            with io.BufferedReader(Unpacked(file, path)) as unpacked:
                yield from _text_rows(unpacked, path, path.with_suffix("").suffix)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: a damaged or cut-off gzip file ({error}); fetch it again") from None


class Unpacked(io.RawIOBase):
    """A gzip file's content, of at most MAX_UNPACKED bytes."""

    def __init__(self, packed: BinaryIO, path: Path) -> None:
        self.file, self.path = gzip.GzipFile(fileobj=packed), path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer: Any) -> int:
        count = self.file.readinto(buffer)
        check_unpacked(self.file.tell(), self.path)
        return count


def check_unpacked(size: int, path: Path) -> None:
    if size > MAX_UNPACKED:
        raise UserError(
            f"{path}: unpacks to more than {MAX_UNPACKED >> 30} GiB; take the problems that you need out of it"
        )


def _text_rows(file: BinaryIO, path: Path, suffix: str) -> Iterator[tuple[str, object]]:
    if suffix.lower() in (".csv", ".tsv"):
        yield from _cells(file, path, "\t" if suffix.lower() == ".tsv" else ",")
    elif _is_list(file):
        yield from _items(file, path)
    else:
        yield from _lines(file, path)


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[str, object]]:
    # Only "\n" ends a line of JSONL: splitlines would also cut at U+2028, which may occur inside a string.
    for at in itertools.count(1):
        if not (line := file.readline(MAX_LINE_BYTES + 1)):
            return
        where = f"{path}, line {at}"
        if len(line) > MAX_LINE_BYTES:
            raise UserError(f"{where}: longer than {MAX_LINE_BYTES >> 20} MiB; write one problem a line (JSONL)")
        if line.strip():
            text = decode(line, where)
            if text.strip():
                yield where, parse_json(text, where, HOW_TO_FIX, Number)


def _is_list(file: BinaryIO) -> bool:
    """Whether the first character of a file, white space aside, is "[". Leaves the file at its beginning."""
    first = b""
    while not first and (line := file.readline(4096)):
        first = line.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    file.seek(0)
    return first == b"["


def _items(file: BinaryIO, path: Path) -> Iterator[tuple[str, object]]:
    raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise UserError(
            f"{path}: a JSON list of more than {MAX_JSON_BYTES >> 20} MiB; write it as JSONL, one object a line"
        )
    for at, row in enumerate(parse_json(decode(raw, str(path)), str(path), HOW_TO_FIX, Number), 1):
        yield f"{path}, item {at}", row


def _cells(file: BinaryIO, path: Path, delimiter: str) -> Iterator[tuple[str, object]]:
    """The rows of a CSV, whose first line names the columns. A cell that is empty is a field that the row does not have."""
    csv.field_size_limit(MAX_CELL)
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{path}: two columns are called {twice[:40]!r}; rename one of them")
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if len(cells) > len(names):
                raise UserError(
                    f"{where}: {len(cells)} cells, but the first line names {len(names)} columns; quote a cell that holds "
                    f"{'a tab' if delimiter == chr(9) else 'a comma'}"
                )
            if cells:
                yield where, {name: cell for name, cell in zip(names, cells) if cell.strip()}
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV: {error}; quote its cells") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}, after line {reader.line_num}: not UTF-8; save the file as UTF-8") from None
    finally:
        lines.detach()  # the file is closed by whoever opened it


def parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of a parquet file, its values as Python has them. Raises UserError where it cannot be read or unpacks to
    too much, or pyarrow is missing."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{path}: parquet is read by pyarrow, which is not installed; pip install pyarrow")
    import pyarrow
    import pyarrow.parquet

    size, at = 0, 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS, use_threads=False):
                check_unpacked(size := size + batch.nbytes, path)
                for row in short_floats(batch).to_pylist():
                    at += 1
                    yield f"{path}, row {at}", row
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path}: cannot be read as parquet after row {at} ({reason}); fetch it again, or save it with plain columns"
        ) from None


def short_floats(batch: Any) -> Any:
    """The batch with its columns of 32-bit floats as the fewest digits that mean them: 0.1, not 0.10000000149011612."""
    import pyarrow

    for at, column in enumerate(batch.schema):
        if column.type == pyarrow.float32():
            values = [
                None if value is None else float(str(np.float32(value))) for value in batch.column(at).to_pylist()
            ]
            batch = batch.set_column(at, column.name, pyarrow.array(values, pyarrow.float64()))
    return batch


def plain(value: Any) -> Any:
    """A value of a table as JSON has it: a number as its digits; one that is no number (NaN) is a gap."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool):
        return Number(value)
    return value
