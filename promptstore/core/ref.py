"""How people and requests name a version."""

from dataclasses import dataclass

from promptstore.core.digest import DIGEST_PATTERN
from promptstore.core.name import check_name
from promptstore.errors import InvalidInputError

DEFAULT_ALIAS = "production"
DIGEST_PREFIX = "sha256:"


@dataclass(frozen=True, slots=True)
class PromptRef:
    """One version of a task by alias, by number or by digest; exactly one of the three is set.

    >>> PromptRef.parse("sst2")
    PromptRef(task='sst2', alias='production', number=None, digest=None)
    >>> str(PromptRef.parse("sst2:7"))
    'sst2:7'
    """

    task: str
    alias: str | None = None
    number: int | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> "PromptRef":
        """`task`, `task@alias`, `task:number` or `task@sha256:<64 hex digits>`; `task` alone means `task@production`.

        Raises:
            InvalidInputError: `text` has none of the four forms.
        """
        task, at, pointer = text.partition("@")
        if at and pointer.startswith(DIGEST_PREFIX):
            digest = pointer.removeprefix(DIGEST_PREFIX)
            check_name(task, "task name")
            if not DIGEST_PATTERN.fullmatch(digest):
                raise InvalidInputError(f"prompt reference {text!r}: expected 64 hexadecimal digits after sha256:")
            return cls(task, digest=digest)
        if at:
            check_name(task, "task name")
            check_name(pointer, "alias")
            return cls(task, alias=pointer)
        task, colon, number = text.partition(":")
        check_name(task, "task name")
        if not colon:
            return cls(task, alias=DEFAULT_ALIAS)
        if not (number.isascii() and number.isdigit()) or int(number) < 1:
            raise InvalidInputError(
                f"prompt reference {text!r}: expected task, task@alias, task:number (from 1) or task@sha256:digest"
            )
        return cls(task, number=int(number))

    def __str__(self) -> str:
        if self.digest is not None:
            return f"{self.task}@{DIGEST_PREFIX}{self.digest}"
        return f"{self.task}@{self.alias}" if self.alias is not None else f"{self.task}:{self.number}"
