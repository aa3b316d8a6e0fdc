"""Models from a hub, through its own client, with its cache and settings (`HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`)."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from promptstore.errors import InvalidInputError, NotFoundError, StoreUnavailableError

DESCRIPTION_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
SAFETENSORS_FILES = ["model.safetensors", "model-*.safetensors"]
PYTORCH_FILES = ["pytorch_model.bin", "pytorch_model-*.bin"]


def download_model(repository: str, revision: str | None) -> tuple[Path, str]:
    """A repository's model files in the hub client's cache, and the commit they are of. Offline, what is cached serves.

    Raises:
        InvalidInputError: not a repository's name.
        NotFoundError: no such repository or revision, or the hub wants a token for it.
        StoreUnavailableError: the hub does not answer and the cache does not hold the model.
    """
    name = f"hf:{repository}" + (f"@{revision}" if revision else "")
    try:
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=[*DESCRIPTION_FILES, *SAFETENSORS_FILES])
        )
        if not any(folder.glob("*.safetensors")):
            snapshot_download(repository, revision=folder.name, allow_patterns=[*DESCRIPTION_FILES, *PYTORCH_FILES])
    except HFValidationError as error:
        raise InvalidInputError(f"{name} is not a repository on the model hub; write hf:<owner>/<model>") from error
    except GatedRepoError as error:
        raise NotFoundError(f"{name} is gated: accept its terms on the hub, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"the model hub has no {name}, or it is private: check the name, or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise NotFoundError(f"the model hub has no revision {revision!r} of hf:{repository}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise StoreUnavailableError(
            f"{name} is not in the hub client's cache and the hub cannot be reached: {str(error).splitlines()[0]}"
        ) from error
    return folder, folder.name
