"""Whether a server goes on, and what its end waits for."""

import asyncio
from dataclasses import dataclass
from typing import TypeVar

from promptstore.errors import NotServingError
from promptstore.serving.arrivals import CLOSE_WITHIN_S

Result = TypeVar("Result")
_LOOK_EVERY_S = 0.1


@dataclass(slots=True)
class Lifecycle:
    """is_draining: the process was told to stop; it answers what it has and asks for no more. For any thread to set."""

    is_draining: bool = False

    async def stored(self, coming: "asyncio.Future[Result]") -> Result:
        """What the store gives: nobody can say when. Once the server drains, a request waits `CLOSE_WITHIN_S` for it.

        Raises:
            NotServingError: it drains, and this took longer; `coming` goes on. Others as `coming`.
        """
        while not (self.is_draining or coming.done()):
            await asyncio.wait({coming}, timeout=_LOOK_EVERY_S)
        await asyncio.wait({coming}, timeout=CLOSE_WITHIN_S)
        if not coming.done():
            raise NotServingError("the server is told to stop, and the store does not answer; repeat the request")
        return coming.result()
