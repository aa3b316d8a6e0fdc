"""Each page as people should see it: where it is, what it must show, what to click before the picture."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

import httpx
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from infra.screenshots.browser import Browser
from promptstore.errors import NotFoundError

# MLflow opens a chat with a language model on the first visit.
NO_ASSISTANT = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""
SHOWN = ("untuned/accuracy", "tuned/accuracy", "initialise", "learning_rate", "steps")
HIDDEN = ("Dataset", "Source", "Models")


@dataclass(frozen=True, slots=True)
class MlflowPages:
    """url: of MLflow's server."""

    browser: Browser
    url: str

    def runs(self, task: str) -> None:
        """The runs of a task, with what was tuned and what came of it."""
        browser = self.browser
        self._open(f"experiments/{self._experiment(task)}/runs", "pictures-first", "pictures-second")
        browser.click("//button[contains(., 'Columns')]")
        for title in (*HIDDEN, *SHOWN):
            browser.click(f"//span[contains(@class, 'tree-title') and normalize-space() = '{title}']")
        browser.driver.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
        browser.click("//*[normalize-space() = 'Training runs']")
        browser.see(*(title for title in SHOWN if "/" not in title))
        browser.picture("mlflow-runs", width=1760, height=620)

    def comparison(self, task: str) -> None:
        """Two runs side by side."""
        runs = quote(json.dumps(self._children(task)))
        experiments = quote(json.dumps([self._experiment(task)]))
        self._open(f"compare-runs?runs={runs}&experiments={experiments}", "Run details")
        self.browser.picture("mlflow-comparison", height=1000, settle_s=6)

    def registry(self, task: str) -> None:
        """The log, mirrored: versions and the alias that production has."""
        self._open(f"models/{task}", "Version 2", "production")
        self.browser.picture("mlflow-registry", height=860)

    def _open(self, page: str, *texts: str) -> None:
        self.browser.driver.get(self.url)
        self.browser.driver.execute_script(NO_ASSISTANT)
        self.browser.open(f"{self.url}/#/{page}", *texts)

    def _experiment(self, task: str) -> str:
        found = self._call("experiments/search", {"max_results": 1000})["experiments"]
        for each in found:
            if each["name"].endswith(f"/{task}"):
                return str(each["experiment_id"])
        raise NotFoundError(f"MLflow at {self.url} has no experiment of task {task}; tune it first")

    def _children(self, task: str) -> Sequence[str]:
        asked = {"experiment_ids": [self._experiment(task)], "filter": "attributes.status = 'FINISHED'"}
        found = self._call("runs/search", asked)["runs"]
        is_child = "mlflow.parentRunId"
        return [
            str(run["info"]["run_id"])
            for run in reversed(found)
            if any(tag["key"] == is_child for tag in run["data"]["tags"])
        ]

    def _call(self, path: str, body: object) -> dict[str, list[dict[str, object]]]:
        answer = httpx.post(f"{self.url}/api/2.0/mlflow/{path}", json=body, timeout=60, trust_env=False)
        return answer.raise_for_status().json()


@dataclass(frozen=True, slots=True)
class PrefectPages:
    """url: of Prefect's server."""

    browser: Browser
    url: str

    def tuned(self, artifact: str) -> None:
        """The table that a tuning leaves."""
        self.browser.open(f"{self.url}/artifacts/artifact/{artifact}", "untuned", "MLflow run")
        self.browser.picture("prefect-tuned", width=1600, height=520)

    def gate(self, artifact: str) -> None:
        """The verdict, rule by rule."""
        self.browser.open(f"{self.url}/artifacts/artifact/{artifact}", "no worse than production")
        self.browser.picture("prefect-gate", width=1600, height=820)

    def approve(self, run: str, *, approver: str, reason: str) -> None:
        """The run that waits; the form that a person fills in, and sends."""
        browser = self.browser
        browser.size(1440, 1250)
        browser.open(f"{self.url}/runs/flow-run/{run}", "Suspended", "Resume")
        browser.click("//button[contains(., 'Resume')]")
        browser.see("Approver")
        browser.click("//label[contains(@class, 'p-toggle__control')]")
        for label, text in (("Approver", approver), ("Reason", reason)):
            browser.find(f"//label[contains(., '{label}')]/following::textarea[1]").send_keys(text)
        browser.picture("prefect-approval", height=1250)
        browser.click("//button[contains(., 'Submit')]")

    def promoted(self, run: str) -> None:
        """The same run, at its end."""
        self.browser.open(f"{self.url}/runs/flow-run/{run}", "Completed", "Artifacts")
        self.browser.picture("prefect-promotion", height=760, settle_s=4)


def server_page(browser: Browser, url: str, refs: Sequence[str], text: str) -> None:
    """One text, asked of several tasks in one batch."""
    browser.size(1280, 1500)
    browser.open(url, "Following commit", *refs)
    for box in browser.driver.find_elements(By.CSS_SELECTOR, "#choices input"):
        if box.is_selected() != (box.get_attribute("value") in refs):
            box.click()
    browser.find("//*[@id = 'fields']//textarea").send_keys(text)
    browser.find("//*[@id = 'ask']").click()
    browser.wait(
        lambda: len(browser.driver.find_elements(By.CSS_SELECTOR, ".answer progress")) >= len(refs), "the answers"
    )
    browser.picture("server", width=1280, height=1500)
