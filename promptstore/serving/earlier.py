"""What an alias meant before, for a server that comes when it points at what cannot be served."""

from collections.abc import Mapping
from dataclasses import dataclass

from promptstore.core.state import PromptVersion, StoreState
from promptstore.errors import CorruptError, IncompatibleModelError, InvalidInputError, NotFoundError
from promptstore.serving.arrivals import BEFORE, Made
from promptstore.serving.table import AliasKey, Target

# How many earlier versions of an alias are tried.
LOOK_BACK = 2
# Of others, a store that cannot be reached above all, it is not known what they mean for the version.
_LASTING = (CorruptError, IncompatibleModelError, InvalidInputError, NotFoundError)


@dataclass(slots=True)
class _Attempt:
    """refused: what the alias points at. left: what to try, in order. tried: how many of them since the last `keep`."""

    refused: PromptVersion
    left: list[PromptVersion]
    tried: int = 0


class Earlier:
    """Earlier versions of aliases that this server never served, one tried after the other. For one thread.

    The servers that were there before go on with the same: what they served until the alias moved.
    """

    def __init__(self) -> None:
        self._attempts: dict[AliasKey, _Attempt] = {}

    @property
    def is_trying(self) -> bool:
        return bool(self._attempts)

    @property
    def wanted(self) -> dict[AliasKey, PromptVersion]:
        """What is to be tried next, by keys of its own for `Arrivals`."""
        return {
            (task, alias + BEFORE): attempt.left[0]
            for (task, alias), attempt in self._attempts.items()
            if attempt.tried < len(attempt.left)
        }

    def begin(self, key: AliasKey, state: StoreState) -> None:
        """An alias points at what is refused; nothing begins anew while it is being tried."""
        name, alias = key
        task = state.tasks[name]
        numbers = dict.fromkeys(move.after for move in reversed(task.moves) if move.alias == alias)
        earlier = [number for number in numbers if number is not None and number != task.aliases[alias]]
        if earlier and key not in self._attempts:
            left = [task.version(number) for number in earlier[:LOOK_BACK]]
            self._attempts[key] = _Attempt(task.version(task.aliases[alias]), left)

    def take(self, made: Mapping[AliasKey, Made], *, is_away: bool) -> dict[AliasKey, Target]:
        """The targets among what was `wanted` and has come; for what was refused the next is wanted.

        One that failed and may not fail again is waited for; while the store is away, the next is tried before it.
        """
        found = {}
        for (task, alias), attempt in list(self._attempts.items()):
            come = made.get((task, alias + BEFORE))
            if isinstance(come, Target):
                found[task, alias] = come
                attempt.left.clear()
            elif come is not None and isinstance(come.error, _LASTING):
                del attempt.left[0]
            elif come is not None:
                attempt.tried = attempt.tried + 1 if is_away else len(attempt.left)
                if is_away:
                    attempt.left.append(attempt.left.pop(0))
            if not attempt.left:
                del self._attempts[task, alias]
        return found

    def keep(self, wanted: Mapping[AliasKey, PromptVersion]) -> None:
        """Goes on for aliases that are `wanted` and point at what they pointed at; what rested is tried again."""
        self._attempts = {
            key: _Attempt(attempt.refused, attempt.left)
            for key, attempt in self._attempts.items()
            if key in wanted and wanted[key].digest == attempt.refused.digest
        }
