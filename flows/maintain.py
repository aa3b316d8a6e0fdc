"""The flow that looks after a store. It deletes nothing in a store that is damaged."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from prefect import flow, get_run_logger, task

from flows.parameters import MaintainParameters
from flows.report import report_care
from flows.retrying import is_passing
from promptstore.catalog.catalog import Catalog
from promptstore.errors import CorruptError
from promptstore.objects.open import open_object_store
from promptstore.settings import load_settings
from promptstore.store.copy import copy_store
from promptstore.store.garbage import collect_garbage
from promptstore.store.memory import HeadMemory
from promptstore.store.retention import plan_retention
from promptstore.store.trust import TrustPolicy
from promptstore.store.verify import verify
from promptstore.wiring import open_prompt_store, open_settings_objects


@dataclass(frozen=True, slots=True)
class Care:
    """What was done. refused: versions that the policy lets go of, which stay because an alias points at them."""

    objects: int
    expired: tuple[str, ...]
    refused: tuple[str, ...]
    deleted: int
    freed_bytes: int
    catalog_at: int
    copied: int | None


@flow(name="maintain")
def maintain(parameters: MaintainParameters) -> Care:
    """Verify first; then expire, delete, and bring catalogue and copy up to date."""
    objects = verify_store()
    expired, refused = expire_old(parameters)
    deleted, freed = collect(parameters)
    care = Care(objects, expired, refused, deleted, freed, sync_catalog(), copy(parameters))
    report_care(asdict(care))
    return care


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def verify_store() -> int:
    """How many objects there are, all of them good."""
    settings = load_settings()
    trust = TrustPolicy.load(settings.trusted_keys) if settings.trusted_keys else None
    memory = HeadMemory(settings.state_dir / "heads")
    found = verify(open_settings_objects(settings), trust=trust, memory=memory)
    if not found.is_clean:
        raise CorruptError(
            f"{len(found.problems)} problem(s), the first: {found.problems[0].key}: {found.problems[0].message}. "
            "Nothing was expired or deleted; `promptstore verify` lists them"
        )
    return found.objects


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def expire_old(parameters: MaintainParameters) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Versions that were expired, and those that an alias keeps."""
    store = open_prompt_store(load_settings(), create=False)
    plan = plan_retention(store.state, parameters.policy(), now=datetime.now(UTC))
    refused = tuple(f"{ref} ({', '.join(aliases)})" for ref, aliases in plan.refused)
    for each in refused:
        get_run_logger().warning("%s is old enough to expire but is in use; move the alias first", each)
    if plan.expire:
        store.expire(plan.expire, reason=f"retention: {parameters.policy()}")
    return tuple(str(ref) for ref in plan.expire), refused


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def collect(parameters: MaintainParameters) -> tuple[int, int]:
    """Objects and bytes that are gone."""
    ledger = open_prompt_store(load_settings(), create=False).ledger
    if ledger.mend_checkpoint():
        get_run_logger().warning("a writer died before it left the newest checkpoint; it was made now")
    found = collect_garbage(ledger, grace=timedelta(hours=parameters.grace_hours), dry_run=False)
    return len(found), sum(each.size_bytes for each in found)


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def sync_catalog() -> int:
    """The commit that the catalogue is at."""
    settings = load_settings()
    return Catalog(settings.catalog_url).sync(open_prompt_store(settings, create=False)).after


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def copy(parameters: MaintainParameters) -> int | None:
    """Objects that went to the other region, if there is one."""
    if parameters.copy_to is None:
        return None
    settings = load_settings()
    source = open_prompt_store(settings, create=False).ledger
    return copy_store(source, open_object_store(parameters.copy_to, settings)).blobs
