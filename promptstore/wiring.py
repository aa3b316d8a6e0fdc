"""Composition root: settings in, objects out. Imports no torch."""

import getpass
from typing import TYPE_CHECKING

from promptstore.errors import InvalidInputError, NotFoundError
from promptstore.objects.open import open_object_store
from promptstore.settings import Settings, load_settings
from promptstore.store.cache import PromptCache
from promptstore.store.last_known import Known, LastKnown
from promptstore.store.ledger import Ledger, LedgerOptions
from promptstore.store.memory import HeadMemory
from promptstore.store.prompt_store import PromptStore
from promptstore.store.trust import Signer, TrustPolicy

if TYPE_CHECKING:
    from promptstore.store.objects import ObjectStore


def open_prompt_store(settings: Settings, *, create: bool = True) -> PromptStore:
    """The store at `settings.store_url`, followed to its end. create: make it if there is none.

    Raises:
        InvalidInputError: a URL of an unknown kind, or a key file that is none.
        NotFoundError: there is no store and `create` is off.
        StoreUnavailableError: the object store cannot be reached.
        UnsupportedStoreError: it ignores create-only writes.
        UntrustedError: its log is not what the trusted keys and this machine's memory demand.
    """
    objects = open_settings_objects(settings)
    options = _ledger_options(settings)
    actor = actor_of(settings)
    try:
        ledger = Ledger.open(objects, actor=actor, **options)
    except NotFoundError:
        if not create:
            raise
        ledger = Ledger.create(objects, actor=actor, **options)
    return PromptStore(ledger, objects, cache=_prompt_cache(settings))


def resume_prompt_store(settings: Settings, known: Known) -> PromptStore:
    """The store at `settings.store_url` as it was last known, without asking it: for when it cannot be reached."""
    objects = open_settings_objects(settings)
    ledger = Ledger.resume(objects, known.header, known.state, actor=actor_of(settings), **_ledger_options(settings))
    return PromptStore(ledger, objects, cache=_prompt_cache(settings))


def last_known(settings: Settings) -> LastKnown:
    """Where this machine keeps what it last knew of the store at `settings.store_url`, on the server that is meant."""
    trusted = TrustPolicy.load(settings.trusted_keys).keys if settings.trusted_keys else ()
    place = [settings.store_url, settings.s3_endpoint or "", settings.s3_region or ""]
    return LastKnown(settings.state_dir / "last-known", [*place, *sorted(trusted)])


def open_store(url: str | None = None, *, create: bool = True) -> PromptStore:
    """The store at `url`, or where PROMPTSTORE_STORE says: `open_prompt_store` for a notebook. Raises as it does."""
    return open_prompt_store(load_settings(store=url), create=create)


def open_settings_objects(settings: Settings) -> "ObjectStore":
    """The object store at `settings.store_url`, untouched so far."""
    return open_object_store(settings.store_url, settings)


def actor_of(settings: Settings) -> str:
    """Who the log says makes a change: the setting, or the login name."""
    if settings.actor:
        return settings.actor
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _prompt_cache(settings: Settings) -> PromptCache | None:
    return PromptCache(settings.cache_dir / "prompts", settings.cache_bytes) if settings.cache_bytes else None


def _ledger_options(settings: Settings) -> LedgerOptions:
    if settings.signing_key is not None and settings.trusted_keys is None:
        raise InvalidInputError(
            "PROMPTSTORE_SIGNING_KEY is set without PROMPTSTORE_TRUSTED_KEYS: name the folder of the keys to trust, "
            "with your own public key in it"
        )
    return LedgerOptions(
        signer=Signer.load(settings.signing_key) if settings.signing_key else None,
        trust=TrustPolicy.load(settings.trusted_keys) if settings.trusted_keys else None,
        memory=HeadMemory(settings.state_dir / "heads"),
    )
