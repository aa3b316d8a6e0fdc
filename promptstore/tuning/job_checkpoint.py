"""Where the fit of a job keeps its checkpoint."""

from promptstore.objects.open import open_object_store
from promptstore.settings import Settings
from promptstore.tuning.fit_checkpoint import CheckpointSlot, FileSlot, ObjectSlot
from promptstore.tuning.job_folder import JobFolder


def checkpoint_slot(folder: JobFolder, job: str, settings: Settings) -> CheckpointSlot:
    """In the job's folder, or, with the setting `checkpoints`, as `fits/<job>` in that object store.

    The object stays when the job is done, a few kilobytes for each prompt: a job repeated on another machine then finds
    its fits finished. Let a lifecycle rule of the bucket delete what is old.

    Raises:
        InvalidInputError: not the URL of an object store.
    """
    if not settings.checkpoints:
        return FileSlot(folder.checkpoint)
    return ObjectSlot(open_object_store(settings.checkpoints, settings), f"fits/{job}")
