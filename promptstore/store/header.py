"""`store.json` in an object store: made once, then proof that create-only writes are kept."""

from promptstore.core.header import StoreHeader
from promptstore.errors import (
    CommitOutcomeUnknownError,
    NotFoundError,
    PromptStoreError,
    StoreUnavailableError,
    UnsupportedStoreError,
)
from promptstore.store.layout import HEADER_KEY
from promptstore.store.objects import ObjectStore
from promptstore.store.patience import Patience
from promptstore.store.reading import read


def read_header(objects: ObjectStore) -> StoreHeader:
    """`store.json`.

    Raises:
        NotFoundError: there is no store at that place.
    """
    try:
        return read(objects, HEADER_KEY, StoreHeader.from_bytes)
    except NotFoundError as error:
        raise NotFoundError(f"{objects.url} holds no store; `promptstore init` makes one") from error


def create_header(objects: ObjectStore, header: StoreHeader, patience: Patience) -> bool:
    """Write `store.json` if there is none; whether it was written just now.

    Raises:
        StoreUnavailableError: the object store did not answer in time; repeating is safe.
    """
    last: PromptStoreError | None = None
    for _ in patience.after_faults():
        try:
            return objects.put_if_absent(HEADER_KEY, header.to_bytes())
        except (StoreUnavailableError, CommitOutcomeUnknownError) as error:
            last = error
    raise StoreUnavailableError(f"{objects.url}: store.json could not be created: {last}") from last


def prove_create_only(objects: ObjectStore, header: StoreHeader, patience: Patience) -> None:
    """Prove that the object store keeps create-only writes apart from others.

    The store of `header` exists, so creating its `store.json` must fail. If it does not, the same bytes were written
    again: no harm was done, and nothing is left to clean up.

    Raises:
        UnsupportedStoreError: it was created a second time, so two writers could both create commit 42.
    """
    if create_header(objects, header, patience):
        raise UnsupportedStoreError(
            f"{objects.url} ignores create-only writes (`If-None-Match: *`), so racing writers would overwrite each "
            "other's commits; use AWS S3, Ceph, SeaweedFS or a local folder"
        )
