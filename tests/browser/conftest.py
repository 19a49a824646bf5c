"""A headless Chromium, started by Selenium from what is installed; nothing is ever downloaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

ARTEFACTS = Path(__file__).parent / "artefacts"
_FLAGS = (
    "--headless=new",
    # Chromium has no sandbox for root, which test machines run as.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
)


class Browser:
    """A browser with one page at a time, and what that page wrote to its console and asked the network for."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, path, width=1280, height=900, scheme="light"):
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(Path(path).resolve().as_uri())

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def console(self):
        return self.driver.get_log("browser")

    def requests(self):
        """Return every address that was asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def picture(self, name):
        """Keep a picture of the whole page, for people to look at."""
        import base64

        ARTEFACTS.mkdir(exist_ok=True)
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        (ARTEFACTS / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))

    def print(self, name):
        import base64

        ARTEFACTS.mkdir(exist_ok=True)
        printed = self.driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})
        content = base64.b64decode(printed["data"])
        (ARTEFACTS / f"{name}.pdf").write_bytes(content)
        return content


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=programs[1]))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
