"""Applies automations: who is told when a run fails or waits for a person."""

from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promptstore.errors import InvalidInputError

WEBHOOK_BLOCK = "promptstore"
MESSAGE = {"text": "{{subject}}\n{{body}}"}  # what Slack, Mattermost and most chats take


class AutomationFile(BaseModel):
    """As `prefect automation create --from-file` reads it, with the block left out of each `send-notification`."""

    model_config = ConfigDict(extra="forbid")

    automations: list[dict[str, Any]] = Field(min_length=1)


def apply_automations(file: Path, notify: str) -> list[str]:
    """Make or bring up to date every automation of `file`, with `notify` as the receiver. Their names.

    notify: a notification block, as in `slack-webhook/oncall`, or the URL of a webhook that takes `{"text": …}`.

    Raises:
        InvalidInputError: no such file or block, or something in the file is wrong.
    """
    with get_client(sync_client=True) as client:
        block = _webhook_block(notify) if "://" in notify else _find_block(client, notify)
        automations = [_automation(entry, block, file) for entry in _read(file).automations]
        for each in automations:
            found = client.read_automations_by_name(each.name)
            if found:
                client.update_automation(found[0].id, each)
            else:
                client.create_automation(each)
    return [each.name for each in automations]


def _read(file: Path) -> AutomationFile:
    try:
        return AutomationFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InvalidInputError(f"there is no {file}; name the automations' file with --automations") from error
    except (yaml.YAMLError, ValidationError) as error:
        raise InvalidInputError(f"{file}: {error}") from error


def _automation(entry: dict[str, Any], block: UUID, file: Path) -> AutomationCore:
    actions = [
        {"block_document_id": str(block), **action} if action.get("type") == "send-notification" else action
        for action in entry.get("actions", ())
    ]
    try:
        return AutomationCore.model_validate({**entry, "actions": actions})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidInputError(f"{file}: {entry.get('name', '?')}: {place}: {first['msg']}") from error


def _find_block(client: SyncPrefectClient, notify: str) -> UUID:
    kind, _, name = notify.partition("/")
    try:
        return client.read_block_document_by_name(name, kind).id
    except ObjectNotFound:
        raise InvalidInputError(
            f"--notify {notify}: there is no such block; make one on Prefect's page under Blocks and name it as "
            "type/name, as in slack-webhook/oncall, or give the URL of a webhook"
        ) from None


def _webhook_block(url: str) -> UUID:
    block = CustomWebhookNotificationBlock(name=WEBHOOK_BLOCK, url=url, json_data=MESSAGE, headers=None, cookies=None)
    saved = block.save(WEBHOOK_BLOCK, overwrite=True)
    assert isinstance(saved, UUID)  # noqa: S101 - a coroutine only where it is called from one
    return saved
