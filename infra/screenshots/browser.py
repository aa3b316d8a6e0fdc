"""Chromium without a window, and pictures small enough for a repository."""

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By

from promptstore.errors import NotFoundError, PromptStoreError

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
# Every name but this machine's leads nowhere: pages load nothing from elsewhere.
LOOPBACK_ONLY = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
MOST_BYTES = 200_000
COLOURS = (256, 128, 64, 32)


@dataclass(frozen=True, slots=True)
class Browser:
    """driver: selenium's. folder: where the pictures go. patience_s: for what should appear."""

    driver: Any
    folder: Path
    patience_s: float = 120.0

    def open(self, url: str, *texts: str) -> None:
        """Go there, and return once the page shows all the texts."""
        self.driver.get("about:blank")
        self.driver.get(url)
        self.see(*texts)

    def see(self, *texts: str) -> None:
        """Return once the page shows all the texts.

        Raises:
            PromptStoreError: one of them does not appear.
        """

        def is_shown(text: str) -> bool:
            return text in self.driver.find_element(By.TAG_NAME, "body").text

        for text in texts:
            self.wait(partial(is_shown, text), f"text {text!r}")

    def find(self, xpath: str) -> Any:
        """The first visible element, once there is one."""
        return self.wait(
            lambda: next((each for each in self.driver.find_elements(By.XPATH, xpath) if each.is_displayed()), None),
            xpath,
        )

    def click(self, xpath: str) -> None:
        self.wait(lambda: self.find(xpath).click() or True, xpath)

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + self.patience_s
        while time.monotonic() < deadline:
            try:
                if found := condition():
                    return found
            except WebDriverException:
                pass  # the page drew itself anew in between
            time.sleep(0.2)
        raise PromptStoreError(f"{self.driver.current_url} does not show {what} within {self.patience_s:.0f} s")

    def size(self, width: int, height: int) -> None:
        """Of the page itself, without a window's frame."""
        asked = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", asked)

    def picture(self, name: str, *, width: int = 1440, height: int = 900, settle_s: float = 2.0) -> Path:
        """The page as it is now, as NAME.png. settle_s: for charts and fonts, whose end nothing tells."""
        self.size(width, height)
        time.sleep(settle_s)
        path = self.folder / f"{name}.png"
        path.write_bytes(small_png(self.driver.get_screenshot_as_png()))
        return path


def small_png(data: bytes) -> bytes:
    """The picture with a palette, of as many colours as its size allows.

    Raises:
        PromptStoreError: it stays too large with the fewest.
    """
    image = Image.open(io.BytesIO(data)).convert("RGB")
    for colours in COLOURS:
        made = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(made, "PNG", optimize=True)
        if made.tell() < MOST_BYTES:
            return made.getvalue()
    raise PromptStoreError(f"a picture of {image.size} pixels has {made.tell()} bytes, at most {MOST_BYTES} are wanted")


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Raises NotFoundError: Chromium is not installed."""
    if not DRIVER.exists():
        raise NotFoundError("chromium is not installed: infra/install-test-servers.sh does so on Debian")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, LOOPBACK_ONLY, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
        try:
            driver.command_executor.client_config.timeout = 600  # Prefect's timeline draws slowly without a GPU
            driver.set_page_load_timeout(300)
            yield Browser(driver, folder)
        finally:
            driver.quit()
