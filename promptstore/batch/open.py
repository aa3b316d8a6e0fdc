"""From settings to scoring at work: what the command line and the flow both call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from promptstore.batch.answers import Answers
from promptstore.batch.progress import shown_progress
from promptstore.batch.score import ScoreRequest, ScoreSummary, score
from promptstore.settings import Settings
from promptstore.tuning.settings_device import settings_device
from promptstore.wiring import open_prompt_store

if TYPE_CHECKING:
    from promptstore.lm.frozen import FrozenModel


def run_score_job(request: ScoreRequest, *, settings: Settings, url: str | None = None) -> ScoreSummary:
    """Score with the model and store of the settings or, given a `url`, through the server there. Raises as `score`."""
    with _opened_answers(settings, url) as answers, shown_progress() as on_progress:
        return score(request, answers, settings=settings, on_progress=on_progress)


@contextmanager
def _opened_answers(settings: Settings, url: str | None) -> Iterator[Answers]:
    if url is not None:
        from promptstore.batch.served_answers import ServedAnswers
        from promptstore.client import Client

        key = settings.api_key.get_secret_value() if settings.api_key else None
        with Client(url, api_key=key) as client:
            yield ServedAnswers(client)
        return

    from promptstore.batch.local_answers import LocalAnswers

    def open_base() -> "FrozenModel":
        from promptstore.lm.source import open_model

        return open_model(settings.model, cache_dir=settings.cache_dir, device=settings.device, dtype=settings.dtype)

    with settings_device(settings, "score"):
        yield LocalAnswers(open_prompt_store(settings, create=False), open_base)
