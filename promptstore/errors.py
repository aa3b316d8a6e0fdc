"""One error tree: a subclass per way of handling it. Messages say what, which, expected, actual, next step."""

import errno


class PromptStoreError(Exception):
    """Root of every error that promptstore raises on purpose."""


class InvalidInputError(PromptStoreError):
    """The caller's input is wrong; fix it and call again. Nothing was changed."""


class NotFoundError(PromptStoreError):
    """The named task, version, alias, object or file does not exist."""


class ConflictError(PromptStoreError):
    """Somebody else changed what the caller expected; read again, decide, retry. Nothing was changed."""


class RefusedError(PromptStoreError):
    """A policy of the store forbids the change (a protected alias without a passing gate, say)."""


class CommitOutcomeUnknownError(PromptStoreError):
    """The store stopped answering before it said whether the commit took effect. Repeating the call is safe."""


class StoreUnavailableError(PromptStoreError):
    """The object store cannot be reached or answers with a passing fault; try again later. Nothing was changed."""


class UnsupportedStoreError(PromptStoreError):
    """The object store lacks a guarantee that promptstore rests on (create-only writes); use another one."""


class CorruptError(PromptStoreError):
    """Stored bytes are not what their name or their writer promised; run `promptstore verify`."""


class UntrustedError(PromptStoreError):
    """The log is unsigned, signed by an unknown key, rolled back, or forked from what was seen before."""


class IncompatibleModelError(PromptStoreError):
    """The prompt was fitted to another base model; load that model or tune the task on this one."""


class OverloadedError(PromptStoreError):
    """The server has all the work it may queue; wait a moment, then repeat the request."""


class DeviceBusyError(PromptStoreError):
    """Other runs hold every GPU that could be used; wait for one of them to end. Nothing was begun."""


class NotServingError(PromptStoreError):
    """The server is starting or shutting down; ask another replica, or repeat the request in a moment."""


def next_step(error: OSError) -> str:
    """What a person can do about a file of this machine that cannot be read or written."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return "free some space there, then repeat: what was acknowledged is kept"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "give this user permission there, or name another place"
        case _:
            return "name another place, or correct that one, then repeat"
