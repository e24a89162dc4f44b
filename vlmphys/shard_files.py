"""Arrow shards of any table: written whole or not at all, listed in a manifest, memory-mapped, refused where anything does not match.

What stands in the shards is `shards`' business (frames, dialogues) and `features`'.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa

from vlmphys.files import fsync_file, fsync_folder, json_bytes, read_json
from vlmphys.records import sha256_file, sha256_text

VERSION = 1
MANIFEST = "manifest.json"
BATCHES = ".batches"
REPACK = "write it with data_prep/pack.py"
REPAIR = "run the same data_prep/pack.py command again with --repair, which makes anew what is damaged"


def schema_metadata(meta: dict) -> dict[str, str]:
    """Settings as an Arrow schema carries them."""
    return {key: json_bytes(value).decode().strip() if isinstance(value, (dict, list, tuple)) else str(value)
            for key, value in sorted(meta.items())}


class _HashedFile:
    """A file that is written from its beginning to its end, as Arrow wants one, and hashed on the way."""

    closed = False

    def __init__(self, path: Path):
        self._stream, self._digest, self._position = open(path, "wb"), hashlib.sha256(), 0

    def write(self, data) -> int:
        self._digest.update(data)
        self._position += len(data)
        return self._stream.write(data)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self.closed = True
        self._stream.close()

    def sha256(self) -> str:
        """Hex digest of what was written so far."""
        return self._digest.hexdigest()


class ShardWriter:
    """Writes one shard under another name, and gives it its own only when it is whole and durable.

    With `resumable` a file beside it lists {rows, bytes, sha256} up to the end of each record batch (see `unfinished`): what was written by then
    can be read after a crash. `close` leaves that list, for whoever makes the shard known to remove afterwards.
    """

    def __init__(self, path: Path, schema: pa.Schema, rows_per_batch: int, resumable: bool = False):
        self.path, self.schema, self.rows_per_batch = path, schema, rows_per_batch
        self.aside = path.with_name(path.name + ".tmp")
        self.batches = path.with_name(path.name + BATCHES) if resumable else None
        self.rows = 0
        if self.batches:
            self.batches.unlink(missing_ok=True)
        self._waiting: list[dict] = []
        self._sink = _HashedFile(self.aside)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._sink, "w"), schema)

    def add(self, row: dict) -> None:
        """Add a row: a value for each column; `frames` as a C-ordered uint8 array, `features` as one of fp16."""
        self._waiting.append(row)
        self.rows += 1
        if len(self._waiting) == self.rows_per_batch:
            self._flush()

    def close(self) -> dict:
        """Finish the shard. Returns its line of the manifest: file, rows, bytes, sha256."""
        self._flush()
        self._writer.close()
        self._sink.close()
        fsync_file(self.aside)
        line = {"file": self.path.name, "rows": self.rows, "bytes": self._sink.tell(), "sha256": self._sink.sha256()}
        os.replace(self.aside, self.path)
        fsync_folder(self.path.parent)
        return line

    def leave(self, failed: bool = False) -> None:
        """End before the shard is whole, with all rows so far in record batches that can be read again; after a write that `failed`, and where
        the disk refuses now, with the batches that are listed. Nothing where `close` was reached."""
        if self._sink.closed:
            return
        # What comes after the last listed batch is cut off by whoever goes on from here.
        with suppress(OSError):
            if not failed:
                self._flush()
        with suppress(OSError):
            self._sink.close()

    def abort(self) -> None:
        """Drop what was written; to be called where `close` was not reached."""
        self._sink.close()
        self.aside.unlink(missing_ok=True)
        if self.batches:
            self.batches.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._waiting:
            return
        columns = []
        for field in self.schema:
            values = [row[field.name] for row in self._waiting]
            if pa.types.is_fixed_size_binary(field.type):
                pixels = np.concatenate([np.ascontiguousarray(value).reshape(-1) for value in values])
                columns.append(pa.FixedSizeBinaryArray.from_buffers(field.type, len(values), [None, pa.py_buffer(pixels)]))
            else:
                columns.append(pa.array(values, field.type))
        self._writer.write_batch(pa.record_batch(columns, schema=self.schema))
        self._waiting = []
        if self.batches:
            self._sink.flush()
            with open(self.batches, "a") as stream:
                stream.write(json.dumps({"rows": self.rows, "bytes": self._sink.tell(), "sha256": self._sink.sha256()}) + "\n")


def manifest_of(kind: str, meta: dict, shards: list[dict], **more: object) -> dict:
    """The content of a folder's manifest; `more` is what the packer keeps there for itself."""
    return {"kind": kind, "version": meta["version"], "meta": meta, "rows": sum(line["rows"] for line in shards), "shards": shards, **more}


def read_manifest(folder: Path, kind: str, cure: str = REPACK) -> dict:
    """A folder's manifest. Raises ValueError, naming the file, where it is missing or broken (ending with `cure`), newer, or of another kind."""
    path = Path(folder) / MANIFEST
    manifest = read_json(path, cure)
    if manifest.get("version") != VERSION:
        raise ValueError(f"{path}: version {manifest.get('version')!r} is not known here, only {VERSION}; "
                         "use the vlmphys that wrote it, or pack again with data_prep/pack.py" + (" --restart" if kind == "frames" else ""))
    if manifest.get("kind") != kind:
        raise ValueError(f"{path}: lists {manifest.get('kind')!r}, {kind!r} is expected; {REPACK}")
    missing = [key for key in ("meta", "shards", "rows") if key not in manifest]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; {REPACK}")
    return manifest


class Table:
    """Shards of one folder, opened together and memory-mapped; rows are found by key."""

    kind = ""
    repairable = False      # by pack.py --repair

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        lost = self.repairable and any(self.folder.glob(f"{self.kind}-*.arrow"))
        self.manifest = read_manifest(self.folder, self.kind, REPAIR if lost else REPACK)
        self.meta: dict = self.manifest["meta"]
        self.fingerprint = sha256_text(json_bytes({"meta": self.meta, "shards": self.manifest["shards"]}).decode())
        self._batches: list[pa.RecordBatch] = []
        self._place: dict = {}
        for line in self.manifest["shards"]:
            self._open_shard(line)

    @classmethod
    def open(cls, folder: str | Path):
        """Open a folder's table. Raises ValueError, naming the file, for a missing, short or foreign shard."""
        return cls(folder)

    def __reduce__(self):
        # A worker process maps the files for itself.
        return type(self), (self.folder,)

    def __len__(self) -> int:
        return len(self._place)

    def _key(self, columns: dict, row: int):
        raise NotImplementedError

    def _schema(self) -> pa.Schema:
        raise NotImplementedError

    def _open_shard(self, line: dict) -> None:
        path = self.folder / line["file"]
        if not path.is_file():
            raise self._damaged(path, "is missing")
        if path.stat().st_size != line["bytes"]:
            raise self._damaged(path, f"has {path.stat().st_size} bytes, its manifest says {line['bytes']}")
        try:
            mapped = pa.memory_map(str(path))
        except PermissionError as error:
            raise ValueError(f"{path}: cannot be read (Permission denied); give yourself the right to read it") from error
        try:
            reader = pa.ipc.open_file(mapped)
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate(full=True)       # offsets and names: no pixel and no token is read
        except (pa.ArrowInvalid, OSError) as error:
            raise self._damaged(path, f"is no whole Arrow file ({error})") from error
        if not reader.schema.equals(self._schema(), check_metadata=True):
            raise self._damaged(path, f"has other columns or settings than {MANIFEST} says")
        rows = sum(batch.num_rows for batch in batches)
        if rows != line["rows"]:
            raise self._damaged(path, f"has {rows} rows, its manifest says {line['rows']}")
        for batch in batches:
            columns = {name: batch.column(name).to_pylist() for name in ("clip_id", *self._key_columns())}
            for row in range(batch.num_rows):
                key = self._key(columns, row)
                if key in self._place:
                    raise self._damaged(path, f"holds the row {key!r} a second time")
                self._place[key] = len(self._batches), row
            self._batches.append(batch)

    def changed_shards(self) -> Iterator[str]:
        """A sentence for each shard whose bytes are not those that its manifest lists (sha256). Reads every byte."""
        for line in self.manifest["shards"]:
            path = self.folder / line["file"]
            if sha256_file(path) != line["sha256"]:
                yield str(self._damaged(path, "its bytes are not those that were written (sha256 differs)"))

    def _key_columns(self) -> tuple[str, ...]:
        return ()

    def _damaged(self, path: Path, problem: str) -> ValueError:
        cure = REPAIR if self.repairable else f"delete {self.folder} and pack it again"
        return ValueError(f"{path}: {problem}; {cure}")

    def _find(self, key) -> tuple[pa.RecordBatch, int]:
        if key not in self._place:
            raise ValueError(f"{self.folder}: has no row {key!r}")
        batch, row = self._place[key]
        return self._batches[batch], row
