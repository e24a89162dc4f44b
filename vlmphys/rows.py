"""The rows of a JSONL or CSV file, with their line numbers; what is no such file is refused by file and line. No torch."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

# What other programs and spreadsheets put between fields; only commas are read.
OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
EXCEL_SUFFIXES = (".xls", ".xlsx", ".xlsm")
# Columns that other rules stand in for, and which a message on the header names nevertheless.
ALSO_NAMED = {("clip_id", "score"): "clip_id, score, and label unless --labels or --data has it"}


def table_rows_of(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
    """Line number and row of a CSV (by its suffix) or JSONL file; the header of a CSV must have these columns."""
    check_file(path)
    try:
        if path.suffix.lower() == ".csv":
            yield from _csv_rows(path, columns)
        else:
            # Lines end at "\n" alone: a text may hold any other separator.
            with open(path, encoding="utf-8-sig", newline="\n") as stream:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        row = json_object(line, path, number)
                        if "\\u" in line:
                            check_characters(row, f"{path}:{number}")
                        yield number, row
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: a JSONL or CSV file is expected") from error
    except OSError as error:
        raise ValueError(unreadable(path, error)) from error


def check_file(path: Path) -> None:
    """Raise ValueError for what is no file."""
    try:
        is_file = path.is_file()
    except OSError as error:     # a name that no file may have
        raise ValueError(unreadable(path, error)) from error
    if is_file:
        _check_kind(path)
    else:
        what = "it is a folder: give a file in it" if path.is_dir() else "it is no plain file: write it to one" if path.exists() else "no such file"
        raise ValueError(f"{path}: {what}")


def _check_kind(path: Path) -> None:
    """Raise ValueError for files that spreadsheets write and that are no text in UTF-8."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise ValueError(unreadable(path, error)) from error
    if start == b"PK\x03\x04" or path.suffix.lower() in EXCEL_SUFFIXES:
        raise ValueError(f"{path} is an Excel file or another archive: save its table as CSV UTF-8 (with commas)")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path} is UTF-16 text, not UTF-8: save it as CSV UTF-8, or as JSONL in UTF-8")


def unreadable(path: Path, error: OSError) -> str:
    """What is said of a file that the disk or its owner keeps."""
    return f"{path} cannot be read ({error.strerror}): give a file that you may read"


def _csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
    """Rows of a CSV as dicts. csv.DictReader would do the same in twice the time, which counts for a million rows."""
    with open(path, newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_header(header, columns, path)
            for fields in reader:
                if not any(fields):     # a row of commas alone, with which spreadsheets end a table
                    continue
                if len(fields) == len(header):
                    yield reader.line_num, dict(zip(header, fields))
                else:
                    raise ValueError(f"{path}:{reader.line_num}: the row has not as many fields as the header ({len(fields)}, not {len(header)}): "
                                     "give it all of them, and close every quote")
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: no CSV row ({error}): close its quotes, shorten the field, "
                             "or give the rows as JSONL") from error


def _check_header(header: Sequence[str], columns: tuple[str, ...], path: Path) -> None:
    """Raise ValueError where a CSV has two columns of one name, or lacks one that every row needs: what it has, what seems to part its fields."""
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise ValueError(f"{path}:1: the header has two columns {twice[0]}: rename or delete one")
    absent = [column for column in columns if column not in header]
    if not header or not absent:
        return
    other = next((sign for sign in OTHER_SEPARATORS if len(header) == 1 and sign in header[0]), None)
    found = [name.strip() for name in header[0].split(other)] if other else header
    cure = f"name the columns in its first line, at least {ALSO_NAMED.get(columns, ', '.join(columns))}"
    likely = {column: name for column in absent for name in header if name.lower().replace(" ", "_") == column}
    if likely:
        cure += f"; write {', '.join(f'{column} in place of {name}' for column, name in likely.items())}"
    if other:
        cure = f"its fields seem to be parted by {OTHER_SEPARATORS[other]}: save it with commas between fields and points in numbers"
    named = ", ".join(name if len(name) < 40 else f"{name[:40]}..." for name in found[:12]) + (", ..." if len(found) > 12 else "")
    raise ValueError(f"{path}:1: the header has no column {' and no column '.join(absent)}; it has: {named}; {cure}")


def json_object(line: bytes | str, path: Path, number: int) -> dict:
    """The object that one line holds. Raises ValueError, naming file and line, for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error).partition(";")[0]
        text = line.decode(errors="replace") if isinstance(line, bytes) else line
        other = next((sign for sign in (*OTHER_SEPARATORS, ",") if sign in text), None)
        if number == 1 and other and not text.lstrip().startswith(("{", "[")):
            raise ValueError(f"{path}:1: no JSON, rather a table: put commas between its fields, and let its name end in .csv") from error
        if number == 1 and text.strip() == "[":
            raise ValueError(f"{path}:1: the beginning of a list in several lines: write each of its objects in one line, without brackets around "
                             "all and commas between them") from error
        raise ValueError(f"{path}:{number}: no JSON ({reason}): one JSON object a line is expected, or a file ending in .csv") from error
    if not isinstance(row, dict):
        cure = ": write each of its objects in a line of its own, without brackets around all" if isinstance(row, list) else ""
        raise ValueError(f"{path}:{number}: one JSON object a line is expected, not a {type(row).__name__}{cure}")
    return row


def check_characters(value: object, where: str) -> None:
    """Raise ValueError where an escape is half of a pair, such as \\ud83d alone: it is no text, and could not be written again."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {ascii(error.object[error.start])} is half of a character: write whole ones, "
                         "or a question mark in its place") from error
