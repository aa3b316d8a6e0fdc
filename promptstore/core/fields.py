"""Strict reading of JSON objects: every field present, of the right type, and none left over."""

from collections.abc import Mapping
from typing import Any

from promptstore.core.digest import DIGEST_PATTERN
from promptstore.core.name import NAME_PATTERN
from promptstore.errors import CorruptError


class Fields:
    """Reads the fields of one JSON object by name and type; `done` refuses the ones nobody asked for.

    Strict on purpose: a field that this version does not know may change the meaning of the others.
    """

    def __init__(self, value: Any, what: str) -> None:
        if not isinstance(value, dict):
            raise CorruptError(f"{what}: expected a JSON object, found {type(value).__name__}")
        self._left: dict[str, Any] = dict(value)
        self._what = what

    def has(self, name: str) -> bool:
        """Whether the field is there and nobody has read it yet; for fields that may be left out."""
        return name in self._left

    def text(self, name: str) -> str:
        return str(self._take(name, str))

    def optional_text(self, name: str) -> str | None:
        value = self._take(name, str, type(None))
        return None if value is None else str(value)

    def integer(self, name: str, *, at_least: int = 0) -> int:
        value = int(self._take(name, int))
        if value < at_least:
            raise CorruptError(f"{self._what}: {name} is {value}, expected at least {at_least}")
        return value

    def optional_integer(self, name: str, *, at_least: int = 0) -> int | None:
        if self._left.get(name, 0) is None:
            self._left.pop(name)
            return None
        return self.integer(name, at_least=at_least)

    def number(self, name: str) -> float:
        return float(self._take(name, int, float))

    def optional_number(self, name: str) -> float | None:
        value = self._take(name, int, float, type(None))
        return None if value is None else float(value)

    def boolean(self, name: str) -> bool:
        return bool(self._take(name, bool))

    def digest(self, name: str) -> str:
        value = self.text(name)
        if not DIGEST_PATTERN.fullmatch(value):
            raise CorruptError(f"{self._what}: {name} is {value!r}, expected 64 hexadecimal digits")
        return value

    def optional_digest(self, name: str) -> str | None:
        if self._left.get(name, "") is None:
            self._left.pop(name)
            return None
        return self.digest(name)

    def name(self, name: str) -> str:
        return self._named(name, self.text(name))

    def names(self, name: str) -> list[str]:
        return [self._named(name, value) for value in self.array(name)]

    def digests(self, name: str) -> list[str]:
        """Digests in ascending order, none twice."""
        values = self.array(name)
        if not all(isinstance(value, str) and DIGEST_PATTERN.fullmatch(value) for value in values):
            raise CorruptError(f"{self._what}: {name} holds something other than 64 hexadecimal digits")
        if values != sorted(set(values)):
            raise CorruptError(f"{self._what}: {name} are not in ascending order")
        return values

    def mapping(self, name: str) -> dict[str, Any]:
        return dict(self._take(name, dict))

    def array(self, name: str) -> list[Any]:
        return list(self._take(name, list))

    def numbers(self, name: str) -> Mapping[str, float]:
        values = self.mapping(name)
        for key, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise CorruptError(f"{self._what}: {name}.{key} is {value!r}, expected a number")
        return {key: float(value) for key, value in values.items()}

    def done(self) -> None:
        if self._left:
            unknown = ", ".join(sorted(self._left))
            raise CorruptError(f"{self._what}: unknown field {unknown}; it may need a newer promptstore")

    def _named(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or not NAME_PATTERN.fullmatch(value):
            raise CorruptError(f"{self._what}: {name} is {value!r}, which is not a valid name")
        return value

    def _take(self, name: str, *types: type) -> Any:
        if name not in self._left:
            raise CorruptError(f"{self._what}: field {name} is missing")
        value = self._left.pop(name)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join(kind.__name__ for kind in types)
            raise CorruptError(f"{self._what}: {name} is {value!r}, expected {expected}")
        return value
