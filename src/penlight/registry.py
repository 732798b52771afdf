"""Names and what they stand for: methods, model sources.

Built-in entries and a third party's register in the same way: as an entry point of the registry's group, whose value is the entry
itself. Penlight's own `pyproject.toml` lists ours, so that nothing is imported until it is looked up.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from penlight.errors import PenlightError, UnknownName

T = TypeVar("T")


class Registry(Generic[T]):
    """Name → entry, read from an entry-point group on first look-up.

    >>> numbers: Registry[int] = Registry("number", group="example.numbers")
    >>> numbers.add("one", 1)
    >>> numbers["one"], list(numbers)
    (1, ['one'])
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._entries: dict[str, T] = {}
        self._points: dict[str, EntryPoint] | None = None

    def add(self, name: str, entry: T) -> None:
        """Register `entry`; a name that is taken is an error."""
        if name in self._entries or name in self._found():
            raise PenlightError(f"{self.kind} {name!r} is registered already; give yours another name")
        self._entries[name] = entry

    def remove(self, name: str) -> None:
        """Take back what `add` registered."""
        self._entries.pop(name)

    def _found(self) -> dict[str, EntryPoint]:
        if self._points is None:
            points: dict[str, EntryPoint] = {}
            for point in entry_points(group=self.group):
                if points.setdefault(point.name, point).value != point.value:
                    raise PenlightError(
                        f"two packages register {self.kind} {point.name!r}: {points[point.name].value} and {point.value};"
                        " uninstall one of them"
                    )
            self._points = points
        return self._points

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            if name not in self._found():
                raise UnknownName(self.kind, name, list(self))
            self._entries[name] = cast(T, self._found()[name].load())
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._entries, *self._found()}))

    def __contains__(self, name: Any) -> bool:
        return name in self._entries or name in self._found()

    def __len__(self) -> int:
        return sum(1 for _ in self)
