"""What an alias meant before, for a server that comes when it points at what cannot be served."""

from collections.abc import Collection, Mapping

from promptstore.core.state import PromptVersion, StoreState
from promptstore.serving.arrivals import BEFORE, Made
from promptstore.serving.table import AliasKey, Target

# How many earlier versions of an alias are tried.
LOOK_BACK = 2


class Earlier:
    """Earlier versions of aliases that this server never served, one tried after the other. For one thread.

    The servers that were there before go on with the same: what they served until the alias moved.
    """

    def __init__(self) -> None:
        self._left: dict[AliasKey, list[PromptVersion]] = {}

    @property
    def wanted(self) -> dict[AliasKey, PromptVersion]:
        """What is to be tried next, by keys of its own for `Arrivals`."""
        return {(task, alias + BEFORE): left[0] for (task, alias), left in self._left.items()}

    def begin(self, key: AliasKey, state: StoreState) -> None:
        """An alias points at what is refused; nothing begins anew while it is being tried."""
        name, alias = key
        task = state.tasks[name]
        numbers = dict.fromkeys(move.after for move in reversed(task.moves) if move.alias == alias)
        earlier = [number for number in numbers if number is not None and number != task.aliases[alias]]
        if earlier and key not in self._left:
            self._left[key] = [task.version(number) for number in earlier[:LOOK_BACK]]

    def take(self, made: Mapping[AliasKey, Made]) -> dict[AliasKey, Target]:
        """The targets among what was `wanted` and has come; for what was refused the next is wanted."""
        found = {}
        for (task, alias), left in list(self._left.items()):
            come = made.get((task, alias + BEFORE))
            if isinstance(come, Target):
                found[task, alias] = come
            elif come is not None:
                del left[0]
            if come is not None and (isinstance(come, Target) or not left):
                del self._left[task, alias]
        return found

    def keep(self, keys: Collection[AliasKey]) -> None:
        """Tries no more for others than `keys`."""
        self._left = {key: left for key, left in self._left.items() if key in keys}
