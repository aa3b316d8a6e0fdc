"""The server's page in a real browser."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from promptstore.serving.api_keys import ApiKey, digest_key
from promptstore.serving.options import ServerOptions
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.served import ANSWER, ENTAILMENT, SENTIMENT, TOPIC, live_server, new_store, publish_random
from promptstore.testing.tiny_models import tiny_llama

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
pytestmark = pytest.mark.skipif(not DRIVER.exists(), reason="needs Debian's packages chromium and chromium-driver")
SCREENSHOTS = os.environ.get("PROMPTSTORE_SCREENSHOTS", "")
QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1700",
)
MODEL = tiny_llama()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*QUIET, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        found = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
        yield found
        found.quit()


@pytest.fixture
def store() -> PromptStore:
    store = new_store()
    for seed, task in enumerate((SENTIMENT, TOPIC, ENTAILMENT, ANSWER)):
        publish_random(store, MODEL, task, seed=seed)
    publish_random(store, MODEL, SENTIMENT, seed=11, alias="staging")
    return store


def _wait(browser: Any, condition: Any) -> Any:
    return WebDriverWait(browser, 10, poll_frequency=0.05).until(lambda _: condition())


def _find(browser: Any, selector: str) -> list[Any]:
    found: list[Any] = browser.find_elements(By.CSS_SELECTOR, selector)
    return found


def _clicked(browser: Any, selector: str, index: int) -> bool:
    """Whether an element could be clicked: the page draws its lists anew at each poll, under the cursor too."""
    try:
        _find(browser, selector)[index].click()
    except StaleElementReferenceException:
        return False
    return True


def _texts(browser: Any, selector: str) -> list[str]:
    return [element.text for element in _find(browser, selector)]


def _choose(browser: Any, *refs: str) -> None:
    for box in _find(browser, "#choices input"):
        if box.is_selected() != (box.get_attribute("value") in refs):
            box.click()


def _screenshot(browser: Any, name: str) -> None:
    if SCREENSHOTS:
        browser.save_screenshot(str(Path(SCREENSHOTS) / f"{name}.png"))


def _errors(browser: Any, url: str) -> list[str]:
    """What the page at `url` complained about, violations of its content security policy included.

    The page of the test before may still ask its own server, which is gone.
    """
    said = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return [message for message in said if url in message]


def test_the_page_shows_the_store_and_answers_several_tasks_at_once(browser: Any, store: PromptStore) -> None:
    with live_server(store, MODEL, ServerOptions(poll_s=0.05)) as live:
        browser.get(live.url)
        _wait(browser, lambda: len(_find(browser, "#aliases tr")) == 5)
        assert "Following commit" in _find(browser, "#status")[0].text
        assert _texts(browser, "#choices label") == [
            "answer",
            "entailment",
            "sentiment",
            "sentiment@staging",
            "topic",
        ]
        _choose(browser, "sentiment", "sentiment@staging", "topic", "answer")
        _find(browser, "#fields textarea")[0].send_keys("A great film, and my new phone works well.")
        _find(browser, "#ask")[0].click()
        answers = _wait(browser, lambda: len(found := _find(browser, ".answer")) == 4 and found)
        assert [each.text.split("\n")[0] for each in answers] == ["answer", "sentiment", "sentiment@staging", "topic"]
        assert len(_find(browser, ".answer progress.best")) == 3
        assert not _find(browser, ".answer .problem")
        _wait(browser, lambda: _clicked(browser, "#versions summary", 2))
        _screenshot(browser, "page")
        assert _errors(browser, live.url) == []


def test_a_promotion_shows_up_without_a_reload(browser: Any, store: PromptStore) -> None:
    with live_server(store, MODEL, ServerOptions(poll_s=0.05)) as live:
        browser.get(live.url)
        _wait(browser, lambda: len(_find(browser, "#aliases tr")) == 5)
        store.promote("sentiment:2", reason="better on the new reviews", force=True)
        _wait(browser, lambda: "better on the new reviews" in _find(browser, "#moves")[0].text)
        assert "sentiment@production: 1 → 2" in _find(browser, "#moves")[0].text
        assert _errors(browser, live.url) == []


def test_a_task_of_several_fields_gets_a_box_for_each(browser: Any, store: PromptStore) -> None:
    with live_server(store, MODEL) as live:
        browser.get(live.url)
        _wait(browser, lambda: _find(browser, "#choices input"))
        _choose(browser, "entailment")
        assert _texts(browser, "#fields label") == ["premise", "hypothesis"]
        for area in _find(browser, "#fields textarea"):
            area.send_keys("it rains")
        _find(browser, "#ask")[0].click()
        _wait(browser, lambda: _find(browser, ".answer .shares"))


def test_with_keys_the_page_asks_for_one(browser: Any, store: PromptStore) -> None:
    keys = [ApiKey("page", digest_key("secret"), frozenset({"infer"}))]
    with live_server(store, MODEL, keys=keys) as live:
        browser.get(live.url)
        _wait(browser, _find(browser, "#key-form")[0].is_displayed)
        assert not _find(browser, "#aliases tr")
        _find(browser, "#key")[0].send_keys("secret")
        _find(browser, "#key-form button")[0].click()
        _wait(browser, lambda: _find(browser, "#aliases tr"))
        assert not _find(browser, "#key-form")[0].is_displayed()


def test_text_from_the_store_is_never_markup(browser: Any) -> None:
    store = new_store()
    publish_random(store, MODEL, SENTIMENT, seed=1)
    store.promote("sentiment:1", "staging", reason="<img src=x onerror=\"document.title='owned'\">")
    with live_server(store, MODEL) as live:
        browser.get(live.url)
        _wait(browser, lambda: "<img" in _find(browser, "#moves")[0].text)
        assert browser.title == "promptstore server"
        assert not _find(browser, "#moves img")


def test_every_control_has_a_name_and_every_table_has_headings(browser: Any, store: PromptStore) -> None:
    with live_server(store, MODEL) as live:
        browser.get(live.url)
        _wait(browser, lambda: len(_find(browser, "#aliases tr")) == 5)
        nameless = browser.execute_script(
            """return [...document.querySelectorAll("input, textarea, button, progress, summary")]
               .filter((each) => !(each.labels?.length || each.textContent.trim() || each.getAttribute("aria-label")))
               .map((each) => each.outerHTML)"""
        )
        assert nameless == []
        headless = browser.execute_script(
            """return [...document.querySelectorAll("table")]
               .filter((each) => !each.querySelector("th[scope=col]")).length"""
        )
        assert headless == 0
        assert len(_find(browser, "h1")) == 1
