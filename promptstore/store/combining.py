"""Versions that answer as one."""

from collections.abc import Sequence
from typing import cast

from promptstore.core.ensemble import Combination
from promptstore.core.prompt import SoftPrompt
from promptstore.core.state import PromptVersion
from promptstore.errors import InvalidInputError
from promptstore.store.prompt_store import PromptStore, Ref


def combine_versions(
    store: PromptStore, refs: Sequence[Ref], combination: str, *, reason: str = "", actor: str | None = None
) -> PromptVersion:
    """Publish versions of one task as one more version of it, an ensemble (`promptstore.core.ensemble`).

    It has the task of the first of them, no metrics until it is judged, and who its members are in its reason.

    Raises:
        InvalidInputError: fewer than two, versions of different tasks, templates or labels, of other lengths, one that
            is an ensemble itself, a task that generates text, or a combination that there is not.
        NotFoundError: no such version. IncompatibleModelError: they are of different base models.
    """
    pulled = [store.pull(ref, for_model=None) for ref in refs]
    if not pulled:
        raise InvalidInputError("an ensemble has at least two members; name two versions of one task")
    asked = [
        (task.name, task.template, task.labels, task.placement) for task in (each.manifest.task for each in pulled)
    ]
    if any(each != asked[0] for each in asked):
        raise InvalidInputError(
            "members of an ensemble answer the same question: versions of one task with one template, the same labels "
            f"and placement; found {', '.join(str(each.version) for each in pulled)}"
        )
    prompt = SoftPrompt.together([each.prompt for each in pulled], cast("Combination", combination))
    members = ", ".join(str(each.version) for each in pulled)
    said = f"{combination} of {members}"
    return store.publish(prompt, pulled[0].manifest.task, reason=f"{reason} ({said})" if reason else said, actor=actor)
