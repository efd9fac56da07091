"""The page in a real browser: headless Chromium, driven over its debugging pipe. Skips where there
is no Chromium."""

import base64
import json
import os
import shutil
import subprocess

import pytest
from tools import write_lines

from runtime import report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(not CHROMIUM or os.name == "nt", reason="no chromium on the path")
TOKENS = "[...document.querySelectorAll('.tokens span')]"
EVIL = "</script><script>window.owned = 1</script><img src=x onerror='window.owned = 1'><b>bold</b>"


class Browser:
    """One page of a headless Chromium. `errors` collects console errors, exceptions and failed
    requests."""

    def __init__(self, profile):
        ours, theirs = os.pipe(), os.pipe()  # to the browser, from the browser

        def connect():  # Chromium reads from descriptor 3 and writes to 4
            reading, writing = os.dup(ours[0]), os.dup(theirs[1])
            os.dup2(reading, 3), os.dup2(writing, 4)

        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        self.process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless",
                *root,
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--remote-debugging-pipe",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                f"--user-data-dir={profile}",
            ],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(ours[0]), os.close(theirs[1])
        self.to, self.of, self.count, self.rest, self.errors, self.session = (
            ours[1],
            theirs[0],
            0,
            b"",
            [],
            {},
        )
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {
            "sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)[
                "sessionId"
            ]
        }
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def message(self):
        while b"\0" not in self.rest:
            block = os.read(self.of, 1 << 20)
            assert block, "chromium is gone"
            self.rest += block
        text, _, self.rest = self.rest.partition(b"\0")
        found = json.loads(text)
        if found.get("method") in (
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Page.javascriptDialogOpening",
        ):
            self.errors.append(found["params"])
        return found

    def call(self, method, **parameters):
        self.count += 1
        text = json.dumps(
            {"id": self.count, "method": method, "params": parameters, **self.session}
        )
        os.write(self.to, text.encode() + b"\0")
        while (found := self.message()).get("id") != self.count:
            pass
        assert "error" not in found, found
        return found["result"]

    def open(self, path):
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self.message().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression):
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.to), os.close(self.of)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


def attempt(number, right, texts, ratios, peers):
    n = len(texts)

    def context(successes, failures, scale):
        return {
            "successes": successes,
            "failures": failures,
            "prompt": f"peers of #{number} {EVIL}" if successes else "",
            "teacher": [-1.0 + scale * r for r in ratios],
            "divergence": [round(abs(scale * r) / 5, 3) for r in ratios],
            "likely": [[["sum", -0.1], [EVIL, -2.5]] if scale else None] * n,
        }

    return {
        "number": number,
        "right": right,
        "stopped": True,
        "answer": EVIL,
        "tokens": texts,
        "cut": 0,
        "student": [-1.0] * n,
        "likely": [[["the", -0.5], ["a", -1.0]]] * n,
        "contexts": {
            "none": context([], [], 0),
            "positive": context([peers], [], 0.5),
            "contrastive": context([peers], [2], 1),
        },
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A run of two evaluated steps whose texts try to inject markup."""
    out = tmp_path_factory.mktemp("page") / "run <img src=x onerror='window.owned = 1'>"
    out.mkdir()
    group = [
        attempt(1, True, ["It", " is", " 7", EVIL], [0.1, 1.8, -3.0, 0.0], 2),
        attempt(2, False, ["No", "\n", "漢"], [2.5, 0, -1], 1),
    ]
    records = [
        {
            "step": step,
            "problem": 4,
            "prompt": f"What is 3 + 4? {EVIL}",
            "teacher": "frozen",
            "own": "contrastive",
            "attempts": group,
        }
        for step in (5, 10)
    ]
    records.insert(0, records[0] | {"step": 1, "attempts": group[1:]})
    write_lines(out / "tokens.jsonl", records)
    steps = [
        {
            "step": n,
            "loss": 0.1 / n,
            "success": n / 20,
            "groups_mixed": 3,
            "groups_all_right": 0,
            "groups_all_wrong": 1,
            "seconds": {"rollout": 1.0},
        }
        for n in range(1, 11)
    ]
    held_out = [
        {"step": n, "eval_mean_at_k": n / 12, "eval_pass_at_k": n / 10, "eval_k": 8}
        for n in (0, 5, 10)
    ]
    (out / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in steps + held_out)
    )
    return report.write_report([out])


PRESS = (
    "[...document.querySelectorAll('#controls button')].find(b => b.textContent === {!r}).click()"
)


def test_the_page_runs_without_errors_and_model_text_stays_text(browser, page):
    browser.errors.clear()
    browser.open(page)
    assert browser.value("document.querySelectorAll('#charts svg').length") >= 5
    assert browser.value("document.querySelectorAll('.card').length") == 2
    assert browser.value(f"{TOKENS}.length") == 7
    for context in ("none", "positive", "side by side", "contrastive (this run)"):
        browser.value(PRESS.format(context))
    browser.value(f"{TOKENS}.forEach(span => span.click())")
    assert browser.value("document.querySelector('.tokens').textContent") == "It is 7" + EVIL
    assert EVIL in browser.value("document.body.textContent")
    assert browser.value("document.querySelectorAll('img, #view b b').length") == 0
    assert browser.value("window.owned") is None and browser.errors == []


def test_tokens_are_coloured_by_the_log_ratio_and_hover_tells_the_numbers(browser, page):
    browser.open(page)
    assert (
        browser.value("document.getElementById('pick').selectedOptions[0].textContent")
        == "step 5, problem 4: 1 of 2 right"
    )  # the first with both kinds
    look = "s => [s.className, s.style.getPropertyValue('--a')]"
    assert browser.value(f"{TOKENS}.map({look})") == [
        ["more", "0.05"],
        ["more", "0.90"],
        ["less", "1.00"],
        ["less", "0.00"],
        ["more", "1.00"],
        ["less", "0.00"],
        ["less", "0.50"],
    ]
    colour = "s => getComputedStyle(s).backgroundColor"
    blue, orange = browser.value(f"{TOKENS}.slice(1, 3).map({colour})")
    assert blue.startswith("rgba(") and orange.startswith("rgb(") and blue != orange
    browser.value(f"{TOKENS}[2].onmouseenter()")
    detail = browser.value("document.getElementById('detail').textContent")
    assert "log teacher − log student -3.00" in detail and "divergence 0.6" in detail
    assert (
        "36.8 %" in detail
        and "1.83 %" in detail
        and '"sum" 90.5 %' in detail
        and '"the" 60.7 %' in detail
    )  # exp(-1), exp(-4)
    browser.value("document.querySelector('#detail button').click()")
    assert browser.value("document.getElementById('detail').hidden")
    newline = "s => [s.textContent, s.getClientRects()[0].width > 5]"
    # or there would be nothing to colour or to tap
    assert browser.value(f"({newline})({TOKENS}[5])") == ["↵\n", True]
    assert (
        browser.value("document.querySelector('#controls [aria-pressed=true]').textContent")
        == "contrastive (this run)"
    )
    browser.value(PRESS.format("positive"))
    assert browser.value(look)[1] == ["more", "0.45"]
    assert "reads #2" in browser.value("document.querySelector('.card').textContent")
    browser.value(PRESS.format("side by side"))
    assert browser.value("document.querySelectorAll('.tokens').length") == 6
    browser.value("(p => { p.value = 0; p.onchange() })(document.getElementById('pick'))")
    assert browser.value("document.querySelectorAll('.card').length") == 1


def screenshot(browser):
    return base64.b64decode(browser.call("Page.captureScreenshot")["data"])


def test_the_page_fits_a_phone_and_is_legible_in_the_dark_and_on_paper(browser, page):
    def scheme(name):
        browser.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}]
        )

    browser.call(
        "Emulation.setDeviceMetricsOverride",
        width=360,
        height=740,
        deviceScaleFactor=2,
        mobile=True,
    )
    browser.open(page)
    browser.value(PRESS.format("side by side"))
    assert browser.value("document.documentElement.scrollWidth") <= 360
    contrast = """(() => {
        const linear = x => x / 255 <= 0.04045
            ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4;
        const light = c => {
            const [r, g, b] = c.match(/[\\d.]+/g).map(linear);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const style = getComputedStyle(document.body);
        const pair = [style.color, style.backgroundColor].map(light).sort((a, b) => a - b);
        return (pair[1] + 0.05) / (pair[0] + 0.05); })()"""
    shots = []
    for name in ("light", "dark"):
        scheme(name)
        assert browser.value(contrast) > 7  # WCAG AAA
        shots.append(screenshot(browser))
    assert shots[0] != shots[1]
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert browser.value("getComputedStyle(document.getElementById('controls')).display") == "none"
    assert base64.b64decode(
        browser.call("Page.printToPDF", printBackground=True)["data"]
    ).startswith(b"%PDF")
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
    browser.call("Emulation.clearDeviceMetricsOverride")


def test_without_tokens_the_view_is_hidden_and_the_curves_stay(browser, page, tmp_path):
    (tmp_path / "metrics.jsonl").write_text((page.parent / "metrics.jsonl").read_text())
    browser.errors.clear()
    browser.open(report.write_report([tmp_path]))
    assert browser.value("document.getElementById('view').hidden") and browser.errors == []
    assert browser.value("document.querySelectorAll('#charts svg').length") >= 5
