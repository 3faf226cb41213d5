"""The page's sample browser: what it holds, and how it behaves in a real browser."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from o1core.report.page import browse
from o1core.report.page.browse import repeated_fraction, repeats
from o1core.types import Group
from tests.report.page_cases import AGAIN, ANSWER, EVIL, FIRST, evil_run, page_of, sample, write_study

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=3000",
    "--dump-dom",
)


def browser() -> str:
    """The path of Chromium; without one the test is skipped."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or pytest.skip("no Chromium here")


def in_browser(page: str, folder: Path, probe: str, width: int | None = None) -> dict:
    """What `probe`, the body of a function run inside the page, returns in Chromium.

    The copy that is opened lets inline scripts run, so that it is the escaping that is tested and not the page's policy.
    With a width, the page stands in a frame of that many pixels: a window of its own cannot be that narrow.
    """
    open_page = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", page)
    assert open_page != page
    report = "parent.postMessage(JSON.stringify(value), '*')" if width else "document.title = JSON.stringify(value)"
    body = f"let value; try {{ value = (() => {{ {probe} }})() }} catch (error) {{ value = String(error) }} {report}"
    script = f"<script>setTimeout(() => {{ {body} }}, 100)</script>"
    (folder / "copy.html").write_text(open_page.replace("</body>", script + "</body>"))
    shown = folder / "copy.html"
    if width:
        shown = folder / "frame.html"
        listen = "<script>onmessage = (e) => { document.title = e.data }</script>"
        frame = f"<iframe src='copy.html' style='border:0;width:{width}px;height:800px'></iframe>"
        shown.write_text(f"<title></title>{listen}{frame}")
    command = [browser(), *FLAGS, f"--user-data-dir={folder / 'profile'}", shown.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr[-500:]
    return json.loads(html.unescape(title[1]))


def test_a_strangers_text_runs_nothing_in_a_browser(evil_page, tmp_path):
    probe = """return {pwned: window.pwned ?? null, cards: document.querySelectorAll("article").length,
        images: document.images.length,
        texts: [...document.querySelectorAll("article .text")].map((t) => t.textContent)}"""
    found = in_browser(evil_page, tmp_path, probe)
    assert found["pwned"] is None and found["images"] == 0
    assert found["cards"] == 4 and found["texts"].count(EVIL * 3) == 2


def test_the_pages_own_policy_lets_its_script_run(made, page, tmp_path):
    command = [browser(), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", (made / "out" / "report.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert "2 of 2 problems match." in shown
    assert shown.count("<article") == 4


def test_filters_order_and_search_in_a_browser(page, tmp_path):
    probe = """
        const at = (id) => document.getElementById(id);
        const state = () => [document.querySelectorAll("#list button").length,
            [...document.querySelectorAll(".verdict")].map((v) => v.textContent.slice(2)).join(" "),
            document.querySelectorAll('[data-side="before"] mark').length, document.querySelector(".question")?.textContent];
        const set = (id, value) => {
            at(id).value = value;
            at(id).dispatchEvent(new Event(id === "search" ? "input" : "change"));
            return state();
        };
        const out = {start: state()};
        out.wrong = set("verdict", "wrong");
        out.right = set("verdict", "right");
        set("verdict", "all");
        out.better = set("which", "better");
        out.worse = set("which", "worse");
        set("which", "all");
        out.search = set("search", "NUMBER 1");
        out.nothing = set("search", "no such text");
        set("search", "");
        out.order = [...document.querySelectorAll("#list button")].map((b) => b.dataset.id);
        document.querySelectorAll("#list button")[1].click();
        out.second = [state()[3], document.activeElement.id, document.querySelectorAll('[aria-current="true"]').length];
        return out;
    """
    found = in_browser(page, tmp_path, probe)
    assert found["start"] == [2, "right wrong right right", 3, "What is 47+8-9, number 0?"]
    # p-0 has its wrong one before, p-1 after; the chosen problem stays while it matches.
    assert found["wrong"][:2] == [2, "wrong"]
    assert found["right"][:2] == [2, "right right right"]
    assert found["better"][::3] == [1, "What is 47+8-9, number 0?"]
    assert found["worse"][::3] == [1, "What is 47+8-9, number 1?"]
    assert found["search"][::3] == [1, "What is 47+8-9, number 1?"]
    assert found["nothing"] == [0, "", 0, None]
    assert found["order"] == ["p-0", "p-1"]
    assert found["second"] == ["What is 47+8-9, number 1?", "problem", 1]


def test_no_sideways_scroll_on_a_phone(tmp_path, model):
    labels = {f"a-rather-long-method-name-{i}": i for i in range(1)}
    write_study(tmp_path / "study", model, "compare", labels)
    page = page_of(tmp_path / "study", evil_run(tmp_path / "run", model))
    probe = """
        for (const d of document.querySelectorAll("details")) d.open = true;
        document.getElementById("set").selectedIndex = document.getElementById("set").length - 1;
        document.getElementById("set").dispatchEvent(new Event("change"));
        return [window.innerWidth, document.documentElement.scrollWidth, document.querySelectorAll("article").length]"""
    inner, scroll, cards = in_browser(page, tmp_path, probe, width=375)
    assert inner == 375 and cards == 4
    assert scroll <= inner


@pytest.mark.parametrize(
    "text, repeated",
    [
        (FIRST + ANSWER, []),
        (FIRST + AGAIN + ANSWER, ["47+8=55, 55-9=46"]),
        ("Then 6 * 7 = 42. So $6\\times7=42$, done.", ["So $6\\times7=42$"]),
        ("Let me check that again. 1+1=2. Let me check that again. 1+1=3.", ["Let me check that again"]),
        ("Yes, 46. Yes, 46. x=5. x=5.", []),
        (
            "We see that 3.5 apples are left.\nBut wait, WE SEE that 3.5 apples are left!",
            ["WE SEE that 3.5 apples are left"],
        ),
        ("12+3=15. 12+3=16.", []),
        ("", []),
    ],
)
def test_repeated_passages(text, repeated):
    parts = repeats(text)
    assert "".join(piece for piece, _ in parts) == text
    assert [piece for piece, again in parts if again] == repeated
    assert repeated_fraction(parts) == (sum(map(len, repeated)) / len(text) if text else 0)


def test_the_browser_is_bounded_and_picks_what_tells_most(tokenizer, monkeypatch):
    monkeypatch.setattr(browse, "MOST_PROBLEMS", 4)
    monkeypatch.setattr(browse, "MOST_COMPLETIONS", 3)
    monkeypatch.setattr(browse, "MOST_CHARACTERS", 50)

    def group(name: str, lengths: list[int], right: list[bool]) -> Group:
        samples = tuple(sample(tokenizer, "a" * (n - 1), r) for n, r in zip(lengths, right))
        return Group(name, torch.zeros(1, dtype=torch.int32), samples)

    pairs = []
    for i in range(20):
        before, after = [20, 10, 30, 40], [10, 10, 10, 10]
        right_before, right_after = [True] * 4, [True] * 4
        if i == 7:
            before = [100] * 4  # the longest cut
        if i == 11:
            right_before = [False] * 4  # became right
        if i == 13:
            right_after = [False] * 4  # became wrong
        name = f"p-{i}"
        known = browse.Problem(name, "?", "1")
        pairs.append(browse.Pair(known, group(name, before, right_before), group(name, after, right_after)))
    found = browse.browser_set("label", pairs, tokenizer, 10**6)
    assert {p.id for p in found.problems} == {"p-7", "p-11", "p-13", "p-0"}
    assert found.total == 20 and found.samples == 4
    first = found.problems[0]
    assert first.id == "p-7" and first.cut == 90
    assert [c.left_out for c in first.before] == [49] * 3
    short_to_long = next(p for p in found.problems if p.id == "p-0").before
    assert [c.tokens for c in short_to_long] == [10, 30, 40]  # the ends, and one between
    assert len(browse.browser_set("label", pairs, tokenizer, 1).problems) == 1
