"""Operations of the log as events in Prefect, for triggers and automations."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError

from flows.environment import OUTBOX
from promptstore.outbox.delivery import Outbox, OutboxPlace
from promptstore.outbox.sink import NotDeliveredError
from promptstore.settings import load_settings
from promptstore.store.watch import Event
from promptstore.wiring import open_prompt_store

IDS = UUID("5f3b6a52-8f0c-4c37-9c3e-3b3f6f2f4a11")  # only so that our names give other ids than anybody else's


class PrefectEvents:
    """A Prefect server as a receiver. Told the same event twice, it heeds it once: the id follows from the event's."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client

    def send(self, event: Event) -> None:
        """Returns once Prefect has queued it. Raises as `Sink.send`."""
        try:
            self._client.request("POST", "/events", json=[prefect_event(event, now=datetime.now(UTC))])
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            raise NotDeliveredError(f"Prefect at {self._client.api_url}: {error or type(error).__name__}") from error


def prefect_event(event: Event, *, now: datetime) -> dict[str, Any]:
    """`promptstore.<operation>` on the task's resource; `ref` in the payload names the version it is about.

    now: when Prefect is told. It passes over events that happened long ago, and this may be late news.
    """
    data = event.to_json()
    task, number = data.get("task", "store"), data.get("number", data.get("to"))
    return {
        "id": str(uuid5(IDS, f"{event.store_id}/{event.id}")),
        "occurred": now.isoformat(),
        "event": f"promptstore.{data['op']}",
        "resource": {
            "prefect.resource.id": f"promptstore.task.{task}",
            "prefect.resource.name": task,
            "promptstore.store": event.store_id,
        },
        "payload": data | ({} if number is None else {"ref": f"{task}:{number}"}),
    }


def announce(*, follows: bool) -> int:
    """Tell Prefect what is new in the log since it was told last; the first time, what comes from now on.

    follows: go on for ever. The result is how many events were told.

    Raises:
        ConflictError: another process on this machine does it already.
    """
    settings = load_settings()
    ledger = open_prompt_store(settings).ledger
    place = OutboxPlace(settings.state_dir / "outbox", OUTBOX)
    with get_client(sync_client=True) as client:
        outbox = Outbox(place, PrefectEvents(client))
        return outbox.deliver(ledger, skips_history=True, poll_s=1.0 if follows else None)
