"""The atlas: a folder of results with an SQLite index.

    atlas.sqlite          meta (the model, the data), results (one row a stored result), plan (what the last run asked for)
    results/KEY/          what Result.save writes: results.json, arrays.npz, pictures

A result is written to a staging folder, renamed, and only then entered in the index, so that a process killed at any instant leaves
either a whole result or none. Opening the atlas sweeps away what a killed process left.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penlight.errors import BadInput, BadOutput, ModelMismatch
from penlight.results import Result, load_result
from penlight.results.base import plain

INDEX = "atlas.sqlite"
FORMAT = 1
_WHOLE = "what is stored there stays whole; run again once there is room or permission"
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE results (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, task TEXT NOT NULL,
    bytes INTEGER NOT NULL, created TEXT NOT NULL
);
CREATE TABLE plan (position INTEGER PRIMARY KEY, key TEXT NOT NULL);
"""


class Atlas:
    """A folder of results.

    >>> atlas = Atlas.open("atlas/")               # doctest: +SKIP
    >>> [atlas.get(key) for key in atlas.plan()]   # doctest: +SKIP
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection, lock: sqlite3.Connection | None = None) -> None:
        self.folder = folder
        self._index, self._lock = connection, lock

    @classmethod
    def open(cls, folder: str | Path) -> Atlas:
        """Open an atlas that exists; `BadInput` if the folder is none."""
        folder = Path(folder)
        if not (folder / INDEX).is_file():
            raise BadInput(
                f"{folder} is no atlas (it has no {INDEX}); make one with 'penlight atlas MODEL --data DATA --out {folder}'"
            )
        atlas = cls(folder, _connect(folder / INDEX))
        try:
            found = atlas.meta("format")
        except sqlite3.DatabaseError as error:
            raise BadInput(
                f"{folder / INDEX} is damaged ({error}); remove the folder and build the atlas again"
            ) from error
        if found != FORMAT:
            raise BadInput(
                f"{folder} has atlas format {found}, this version reads {FORMAT}; build it again, or use the version that wrote it"
            )
        return atlas

    @classmethod
    def create(cls, folder: str | Path) -> Atlas:
        """Open the atlas in `folder`, or start one there; `BadOutput` if the folder holds something else or cannot be written."""
        folder = Path(folder)
        if (folder / INDEX).is_file():
            atlas = cls.open(folder)
            atlas._lock = _lock(folder)
            atlas._sweep()
            return atlas
        if folder.exists() and (
            not folder.is_dir() or any(p for p in folder.iterdir() if not p.name.startswith(f".{INDEX}"))
        ):
            raise BadOutput(f"{folder} exists and is no atlas; name another place with --out, or empty it")
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = _lock(folder)
            fresh = folder / f".{INDEX}.new"  # an index appears whole or not at all
            fresh.unlink(missing_ok=True)
            connection = _connect(fresh)
            connection.executescript(_SCHEMA)
            connection.execute("INSERT INTO meta VALUES ('format', ?)", (json.dumps(FORMAT),))
            connection.commit()
            connection.close()
            fresh.rename(folder / INDEX)
            return cls(folder, _connect(folder / INDEX), lock)

    def close(self) -> None:
        """Let go of the index, and of the folder."""
        self._index.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Atlas:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def has(self, key: str) -> bool:
        """Whether the result is stored, whole."""
        return self._index.execute("SELECT 1 FROM results WHERE key = ?", (key,)).fetchone() is not None

    def put(self, key: str, result: Result, task: Mapping[str, Any]) -> None:
        """Keep a result. `BadOutput` if the disk is full or refuses; what was stored before stays whole."""
        if self.has(key):
            return
        with _writing(self.folder):
            place = self.path(key)
            if place.exists():
                shutil.rmtree(place)
            result.save(place, summary=False)
            row = (
                key,
                result.kind,
                json.dumps(plain(task)),
                _size(place),
                time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )
            with self._index:
                self._index.execute("INSERT INTO results (key, kind, task, bytes, created) VALUES (?, ?, ?, ?, ?)", row)

    def get(self, key: str) -> Result:
        """The result stored under `key`; KeyError if there is none."""
        if not self.has(key):
            raise KeyError(key)
        return load_result(self.path(key))

    def task(self, key: str) -> dict[str, Any]:
        """The task a result answers."""
        row = self._index.execute("SELECT task FROM results WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return dict(json.loads(row[0]))

    def path(self, key: str) -> Path:
        """The folder of a result: its pictures lie there under the names of `Result.pictures`, with '.png'."""
        return self.folder / "results" / key

    def keys(self) -> Iterator[str]:
        """All keys, oldest first; also of results that the last plan no longer asks for."""
        for (key,) in self._index.execute("SELECT key FROM results ORDER BY number").fetchall():
            yield key

    def meta(self, name: str) -> Any:
        """A value that `set_meta` stored, or None."""
        row = self._index.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set_meta(self, name: str, value: Any) -> None:
        """Store a JSON value about the whole atlas."""
        with _writing(self.folder), self._index:
            self._index.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(plain(value))))

    def plan(self) -> list[str]:
        """Keys of the tasks the last run asked for, in order; some may not be stored yet."""
        return [key for (key,) in self._index.execute("SELECT key FROM plan ORDER BY position")]

    def set_plan(self, keys: Sequence[str]) -> None:
        """Say which results the atlas shows now."""
        with _writing(self.folder), self._index:
            self._index.execute("DELETE FROM plan")
            self._index.executemany("INSERT INTO plan VALUES (?, ?)", list(enumerate(keys)))

    def claim(self, header: Mapping[str, Any]) -> None:
        """Say which model the atlas is about; `ModelMismatch` if it is about another one already.

        `header` holds at least `reference` and `hash`.
        """
        known = self.meta("model")
        if known is not None and known["hash"] != header["hash"]:
            raise ModelMismatch(
                f"{self.folder} holds the atlas of {known['reference']} with weights {known['hash'][:12]}, not of "
                f"{header['reference']} with weights {header['hash'][:12]}; name another place with --out, or remove it"
            )
        self.set_meta("model", header)

    def _sweep(self) -> None:
        rows = self._index.execute("SELECT key, bytes FROM results").fetchall()
        lost = [(key,) for key, size in rows if _size(self.path(key)) != size]
        with _writing(self.folder):
            with self._index:
                self._index.executemany("DELETE FROM results WHERE key = ?", lost)
            whole = {key for key, _ in rows} - {key for (key,) in lost}
            if (self.folder / "results").is_dir():
                for place in (self.folder / "results").iterdir():
                    if place.name not in whole:
                        shutil.rmtree(place, ignore_errors=True)


def _connect(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, timeout=30, check_same_thread=False)  # a run has one thread at a time use it


def _lock(folder: Path) -> sqlite3.Connection:
    """Keep other writers out for as long as the connection lives; the system lets go of it when the process is killed."""
    lock = sqlite3.connect(folder / f".{INDEX}.lock", timeout=0)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        lock.close()
        if "locked" not in str(error):
            raise
        raise BadOutput(
            f"another process is building the atlas in {folder}; wait for it, or name another place"
        ) from error
    return lock


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir()) if folder.is_dir() else -1


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except BadOutput as error:
        raise BadOutput(f"{error}; {_WHOLE}") from error
    except (OSError, sqlite3.OperationalError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadOutput(f"cannot write to {folder}: {reason}; {_WHOLE}") from error
