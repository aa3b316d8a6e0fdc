"""From the engine's thread to the event loop."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from promptstore.runtime.job import Event, Failed, Finished, Generated, Scored


class Delivery:
    """The events of one job, for one coroutine of the loop it was made in.

    answer_s: seconds from here to the last event, as the engine gave it: whoever reads slowly makes it no longer.
    """

    answer_s: float = 0.0

    def __init__(self) -> None:
        self._made_at = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def deliver(self, event: Event) -> None:
        """For the engine's thread: neither blocks nor raises, even if the loop has gone."""
        if not isinstance(event, Generated):
            self.answer_s = time.monotonic() - self._made_at
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Event]:
        """Every event, the last one included.

        Raises:
            whatever a `Failed` event holds.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, Failed):
                raise event.error
            yield event
            if isinstance(event, Scored | Finished):
                return

    async def scored(self) -> Scored:
        """The only event of a score job. Raises as `events`."""
        event = await self._events.get()
        if isinstance(event, Failed):
            raise event.error
        if not isinstance(event, Scored):
            raise TypeError(f"a score job was answered with {type(event).__name__}")
        return event
