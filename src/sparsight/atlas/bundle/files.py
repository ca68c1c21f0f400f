"""Tables as files: Parquet, CSV, JSON lines, by the ending of the name. Rows go through one after the other.

A row is plain data by column. What is no number or text (scores, quantiles) is a JSON object in JSON lines, and JSON
text in a column of the other two.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from sparsight.atlas.bundle.rows import json_row, json_rows, lines
from sparsight.atlas.bundle.values import Row, unfit
from sparsight.disk import first_line, write_aside
from sparsight.errors import BadFile, BadInput, Missing

Columns = Mapping[str, type]  # name: int, float, str, or dict for what is JSON
ROWS = 8192  # of a Parquet row group


def form(path: Path) -> str:
    """How a file is written, by its name: "parquet", "csv" or "jsonl". Raises BadInput."""
    name = path.name.lower().removesuffix(".gz")
    for ending, kind in ((".parquet", "parquet"), (".csv", "csv"), (".tsv", "csv"), (".jsonl", "jsonl")):
        if name.endswith(ending) and not (kind == "parquet" and path.suffix == ".gz"):
            return kind
    raise BadInput(f"'{path}' is to be a table: name it .parquet, .csv or .jsonl (.csv.gz, .jsonl.gz), or say --as.")


def write_table(path: Path, columns: Columns, rows: Iterable[dict[str, Any]]) -> None:
    """The whole file or, if this is cut off, what was there before.

    Raises BadInput for text that a table cannot hold, BadFile where the disk does not take it.
    """
    write = {"parquet": _write_parquet, "csv": _write_csv, "jsonl": _write_jsonl}[form(path)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, lambda part: write(part, columns, _sound(rows)))
    except OSError as error:
        raise BadFile(f"Cannot write '{path}': {first_line(error)}.") from error


def read_table(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a table of any form, with their places. columns: which of them are JSON; others come as they are.

    Raises BadFile for what is no table, with the line.
    """
    if not path.is_file():
        raise BadFile(f"No file '{path}'.")
    yield from {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_jsonl}[form(path)](path, columns)


def column_names(path: Path) -> list[str]:
    """The columns of a table; of JSON lines, those of the first row: none where there is no row."""
    kind = form(path)
    if kind == "parquet":
        return list(_parquet_file(path).schema_arrow.names)
    if kind == "jsonl":
        return list(next((row for _, row in json_rows(path)), {}))
    return _header(next((line for _, line in lines(path)), b""), path)[0]


def _sound(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows. Raises BadInput for text that would not come back as it was."""
    for row in rows:
        for name, value in row.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            if fault := unfit(text):
                raise BadInput(f"The {name} of feature {row['index']} holds {fault}: mend it before it is exported.")
        yield row


# ── JSON lines ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_jsonl(part: Path, columns: Columns, rows: Iterable[dict[str, Any]]) -> None:
    with _packed(part) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _read_jsonl(path: Path, columns: Columns) -> Iterator[Row]:
    for number, row in json_rows(path):
        yield Row(row, f"'{path}', line {number}")


# ── CSV ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_csv(part: Path, columns: Columns, rows: Iterable[dict[str, Any]]) -> None:
    with _packed(part) as file:
        out = csv.writer(file, delimiter="\t" if ".tsv" in part.name else ",")
        out.writerow(columns)
        for row in rows:
            out.writerow([_cell(row.get(name), kind) for name, kind in columns.items()])


def _cell(value: Any, kind: type) -> Any:
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if kind is dict else repr(value) if kind is float else value


def _read_csv(path: Path, columns: Columns) -> Iterator[Row]:
    text = (line for _, line in lines(path))
    names, delimiter = _header(next(text, b""), path)
    table = csv.reader((line.decode() for line in text), delimiter=delimiter, strict=True)
    line = 2
    try:
        for cells in table:
            where, line = f"'{path}', line {line}", table.line_num + 2
            if cells and len(cells) != len(names):
                raise BadFile(f"{where}, has {len(cells)} cells, and the head names {len(names)} columns.")
            if cells:
                yield Row(_with_json(dict(zip(names, cells, strict=True)), columns, where), where)
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadFile(f"'{path}', line {line}, is no CSV in UTF-8: {first_line(error)}.") from error


def _header(line: bytes, path: Path) -> tuple[list[str], str]:
    """The columns' names, and what stands between them."""
    try:
        text = line.decode("utf-8-sig")
        delimiter = max(",;\t", key=text.count)
        names = next(csv.reader([text], delimiter=delimiter, strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"'{path}', line 1, is no head of a CSV in UTF-8: {first_line(error)}.") from error
    if len(set(names)) != len(names):
        raise BadFile(f"'{path}', line 1, names a column twice: {', '.join(names)}.")
    return names, delimiter


def _with_json(row: dict[str, Any], columns: Columns, where: str) -> dict[str, Any]:
    """Columns of JSON, read; lists stand in an object's place where they do."""
    for name, kind in columns.items():
        if kind is dict and isinstance(row.get(name), str):
            wrapped = f'{{"value": {row[name] or "null"}}}'
            row[name] = json_row(wrapped, f"{where}, {name}")["value"]
    return row


# ── Parquet ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise Missing(
            "Parquet needs pyarrow: pip install 'sparsight[exchange]'; or name the file .csv, .jsonl."
        ) from error
    return pyarrow


def _write_parquet(part: Path, columns: Columns, rows: Iterable[dict[str, Any]]) -> None:
    arrow = _arrow()
    kinds = {int: arrow.int64(), float: arrow.float64(), str: arrow.string(), dict: arrow.string()}
    schema = arrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
    rest = iter(rows)
    with arrow.parquet.ParquetWriter(part, schema, compression="zstd") as out:
        while group := list(islice(rest, ROWS)):
            out.write_table(arrow.table({n: _column(group, n, k) for n, k in columns.items()}, schema=schema))


def _column(group: Sequence[dict[str, Any]], name: str, kind: type) -> list[Any]:
    values = (row.get(name) for row in group)
    return [json.dumps(v, ensure_ascii=False) if kind is dict and v is not None else v for v in values]


def _parquet_file(path: Path) -> Any:
    arrow = _arrow()
    try:
        return arrow.parquet.ParquetFile(path)
    except (arrow.ArrowException, OSError) as error:
        raise BadFile(f"Cannot read '{path}' as Parquet: {first_line(error)}.") from error


def _read_parquet(path: Path, columns: Columns) -> Iterator[Row]:
    arrow, number = _arrow(), 0
    try:
        for batch in _parquet_file(path).iter_batches(ROWS):
            for row in batch.to_pylist():
                number += 1
                where = f"'{path}', row {number}"
                yield Row(_with_json(row, columns, where), where)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadFile(f"'{path}' is damaged after row {number}: {first_line(error)}.") from error


def _packed(part: Path) -> io.TextIOWrapper:
    """A text file to write, packed where its name ends in .gz; the same rows give the same bytes."""
    if part.suffix != ".gz":
        return part.open("w", encoding="utf-8", newline="")
    return io.TextIOWrapper(_Gzip(part), encoding="utf-8", newline="")


class _Gzip(gzip.GzipFile):
    """A packed file without the time in its head."""

    def __init__(self, path: Path) -> None:
        self.raw_file = path.open("wb")
        super().__init__("", "wb", 5, self.raw_file, 0)

    def close(self) -> None:
        super().close()
        self.raw_file.close()
