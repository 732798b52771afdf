"""The contract of a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from penlight.results import Result


class Store(Protocol):
    """Results by key. A key is the hash of the task that asks for the result."""

    def has(self, key: str) -> bool:
        """Whether the result is stored, whole."""

    def put(self, key: str, result: Result, task: Mapping[str, Any]) -> None:
        """Keep a result; when this returns it is stored, and until then it is not."""

    def get(self, key: str) -> Result:
        """The result, or KeyError."""

    def keys(self) -> Iterator[str]:
        """All keys, oldest first."""
