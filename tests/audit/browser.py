"""A browser for the tests: Chromium without a window, spoken to over the WebDriver protocol."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "ArrowDown": "\ue015", "ArrowUp": "\ue013"}


class Browser:
    """One window; ``folder`` takes its profile and its downloads."""

    def __init__(self, folder: Path) -> None:
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True)
        self.driver = subprocess.Popen(
            [str(DRIVER), "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.driver.stdout is not None
        started = next(filter(None, (re.search(r"port (\d+)\.", x) for x in self.driver.stdout)))
        self.url = f"http://127.0.0.1:{started[1]}/session"
        flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        options = {
            "binary": CHROMIUM,
            "args": [*flags, "--window-size=1300,900", f"--user-data-dir={folder / 'profile'}"],
            "prefs": {"download.default_directory": str(self.downloads)},
        }
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "unhandledPromptBehavior": "ignore",
        }
        answer = self._post("", {"capabilities": {"alwaysMatch": wanted}})
        self.url += f"/{answer['sessionId']}"

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        urllib.request.urlopen(urllib.request.Request(self.url, method="DELETE")).close()
        self.driver.terminate()
        self.driver.wait()
        assert self.driver.stdout is not None
        self.driver.stdout.close()

    def open(self, page: Path | str) -> None:
        """A file or an address."""
        self._post("/url", {"url": page if isinstance(page, str) else page.as_uri()})

    def js(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self._post("/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._post("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def press(self, *keys: str) -> None:
        """Keys as a user presses them, one after the other; a text is typed."""
        letters = [letter for key in keys for letter in ([KEYS[key]] if key in KEYS else key)]
        actions = [
            {"type": kind, "value": letter} for letter in letters for kind in ("keyDown", "keyUp")
        ]
        self._post("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def click(self, selector: str) -> None:
        """Where a user would click: in the middle of the element, if nothing covers it."""
        element = self._post("/element", {"using": "css selector", "value": selector})
        (name,) = element.values()
        self._post(f"/element/{name}/click", {})

    def new_tab(self) -> str:
        """Open one, and go to it."""
        tab = str(self._post("/window/new", {"type": "tab"})["handle"])
        self.go_to_tab(tab)
        return tab

    def tabs(self) -> list[str]:
        """Those that are open, the first one first."""
        return [str(tab) for tab in self._get("/window/handles")]

    def go_to_tab(self, tab: str) -> None:
        self._post("/window", {"handle": tab})

    def close_tab(self) -> None:
        """Close this one, and go to the first."""
        urllib.request.urlopen(
            urllib.request.Request(f"{self.url}/window", method="DELETE")
        ).close()
        self.go_to_tab(self.tabs()[0])

    def screenshot(self) -> str:
        """PNG, base64."""
        return str(self._get("/screenshot"))

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What has been logged since the last call: ``"browser"`` or ``"performance"``."""
        found: list[dict[str, Any]] = self._post("/se/log", {"type": kind})
        return found

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)["value"]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                message = json.load(error)["value"]["message"]
            raise AssertionError(f"{path}: {message}") from None


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """What the condition gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
    return found
