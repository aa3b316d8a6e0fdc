"""Takes the pictures of infra/docs from the running stack (`make up`), whose worker tunes, gates and promotes for them.

    python -m infra.screenshots [--folder build/stack] [--to infra/docs/pictures]

Ten minutes on two quiet cores, nearly all of it tuning; taken again, it goes on with what was tuned.
"""

import argparse
import sys
from pathlib import Path

from infra.screenshots.browser import browser
from infra.screenshots.pages import MlflowPages, PrefectPages, server_page
from infra.screenshots.prefect_api import PrefectApi
from infra.screenshots.story import TASK, finish, tell
from infra.stack.__main__ import FOLDER
from infra.stack.environment import chosen_variables, client_variables, own_environment
from infra.stack.place import StackPlace, StackSettings
from promptstore.errors import NotFoundError, PromptStoreError

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
TEXT = "The battery lasts for days and the screen is gorgeous; best phone I ever owned."
REASON = "as good on every label, and it goes on learning"


def main() -> int:
    """Exit code 0 once every picture is taken, 1 if not; then the last line on standard error says why."""
    parser = argparse.ArgumentParser(prog="python -m infra.screenshots", description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the stack; build/stack if not given")
    parser.add_argument("--to", type=Path, default=PICTURES, help="where the pictures go")
    given = parser.parse_args()
    try:
        take(StackPlace(given.folder.absolute()), given.to)
    except PromptStoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def take(place: StackPlace, folder: Path) -> None:
    """Every picture, in the order in which things happen.

    Raises:
        NotFoundError: there is no stack. PromptStoreError: a flow failed, or a page does not show what it should.
    """
    settings = StackSettings.read(place)
    if settings is None:
        raise NotFoundError(f"there is no stack in {place.folder}; `make up` starts one")
    folder.mkdir(parents=True, exist_ok=True)
    api = PrefectApi(f"{settings.url('prefect')}/api")
    environment = {**own_environment(), **chosen_variables(), **client_variables(place, settings)}
    story = tell(api, environment, place.folder / "tasks")
    with browser(folder) as page:
        prefect, mlflow = PrefectPages(page, settings.url("prefect")), MlflowPages(page, settings.url("mlflow"))
        prefect.tuned(api.artifact(story.tuned, "tuned-prompts"))
        prefect.gate(api.artifact(story.waiting, "gate"))
        prefect.approve(story.waiting, approver="Ada Example", reason=REASON)
        finish(api, story)
        prefect.promoted(story.waiting)
        mlflow.runs(TASK)
        mlflow.comparison(TASK)
        mlflow.registry(TASK)
        server_page(page, settings.url("server"), (TASK, "source"), TEXT)


if __name__ == "__main__":
    sys.exit(main())
