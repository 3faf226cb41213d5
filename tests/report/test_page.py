"""The report page: its numbers, its browser in a real browser, and what a stranger's text and files cannot do."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from o1core.errors import UserError
from o1core.evaluation import Evaluation, RunResult, compare
from o1core.files import write_json
from o1core.model import Tokenizer
from o1core.report.charts import Line, spread_out
from o1core.report.numbers import minus
from o1core.report.page import browse, write_page
from o1core.report.page.passages import repeated_fraction, repeats
from o1core.report.page.svg import to_svg
from o1core.report.page.writer import embed
from o1core.report.run_charts import curves
from o1core.rollout import Group, Sample, write_shard
from o1core.typed_json import to_json

EVIL = '<script>window.pwned=1</script><img src=x onerror="window.pwned=1">\'"</style></title>&amp;]]>-->'
FIRST = "First, 47+8=55. Then 55-9=46. So the answer is 46."
AGAIN = "\nWait, let me check that again. 47+8=55, 55-9=46. Yes, 46."
ANSWER = "\nFinal answer: \\boxed{46}"
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
END = 258


@pytest.fixture(scope="module")
def model(tmp_path_factory, build_checkpoint) -> Path:
    """A checkpoint whose tokenizer can write any text: its tokens are bytes."""
    folder = tmp_path_factory.mktemp("page") / "model"
    build_checkpoint(folder)
    return folder


@pytest.fixture
def tokenizer(model) -> Tokenizer:
    return Tokenizer(model, 272)


def sample(tokenizer: Tokenizer, text: str, correct: bool, answer: str | None = "46") -> Sample:
    ids = torch.tensor([*tokenizer.encode(text), END], dtype=torch.int32)
    return Sample(ids, torch.zeros(len(ids)), "stop", answer, correct)


def problem(name: str, question: str = "What is 47+8-9?", level: str | None = None, answer: str = "46") -> dict:
    return {"id": name, "question": question, "answer": answer, "level": level, "subject": None}


def write_side(
    folder: Path, tokenizer: Tokenizer, problems: list[dict], texts: list[list[tuple[str, bool]]]
) -> Evaluation:
    """problems.json and rollouts of one test on one side; returns its evaluation."""
    prompt = torch.tensor(tokenizer.prompt("?"), dtype=torch.int32)
    groups = [
        Group(p["id"], prompt, tuple(sample(tokenizer, text, correct) for text, correct in row))
        for p, row in zip(problems, texts)
    ]
    write_shard(folder / "rollouts", groups)
    write_json(folder / "problems.json", problems)
    lengths = [float(s.length) for g in groups for s in g.samples]
    verdicts = [s.correct for g in groups for s in g.samples]
    accuracy = sum(verdicts) / len(verdicts)
    return Evaluation(
        accuracy=accuracy,
        accuracy_low=accuracy / 2,
        accuracy_high=(1 + accuracy) / 2,
        truncated=0.125,
        mean_tokens=sum(lengths) / len(lengths),
        median_tokens=sorted(lengths)[len(lengths) // 2],
        tokens_per_second=1.0,
        problems=len(groups),
        samples=len(groups[0].samples),
        seconds=1.0,
    )


def write_log(run: Path, steps: int = 6, **fields) -> None:
    names = {
        "reward": 0.5,
        "mean_length": 90.0,
        "ratio_mean": 1.0,
        "clip_fraction": 0.1,
        "approx_kl": 0.01,
        "loss": 0.2,
    }
    lines = [{"step": i + 1, **{k: v * (i + 1) for k, v in (names | fields).items() if v}} for i in range(steps)]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(run: Path, model: Path, tests: dict[str, tuple[list[dict], list, list]]) -> dict:
    """A run folder of hand-written completions; tests: {name: (problems, texts before, texts after)}."""
    run.mkdir(parents=True)
    tokenizer = Tokenizer(model, 272)
    write_json(run / "settings.json", {"model": str(model), "method": "o1-pruner", "lam": 2.0})
    sides = {
        side: {name: write_side(run / side / name, tokenizer, t[0], t[i]) for name, t in tests.items()}
        for i, side in ((1, "base"), (2, "after"))
    }
    result = to_json(RunResult(compare(sides["base"], sides["after"]), 3.0, "pruned", {}))
    write_json(run / "result.json", result)
    return result


def plain_test(count: int = 2) -> tuple[list[dict], list, list]:
    """Problems of two completions each: before with a re-check, after without, one wrong on each side."""
    problems = [problem(f"p-{i}", f"What is 47+8-9, number {i}?", str(1 + i % 2)) for i in range(count)]
    before = [[(FIRST + AGAIN + ANSWER, True), (FIRST + AGAIN + AGAIN + ANSWER, i > 0)] for i in range(count)]
    after = [[(FIRST + ANSWER, True), (FIRST + ANSWER, i < count - 1)] for i in range(count)]
    return problems, before, after


@pytest.fixture
def run(tmp_path, model) -> Path:
    write_run(tmp_path / "run", model, {"arithmetic": plain_test()})
    write_log(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def made(tmp_path_factory, model) -> Path:
    """A run with its page, to be read only: made/run and made/out/report.html."""
    folder = tmp_path_factory.mktemp("made")
    write_run(folder / "run", model, {"arithmetic": plain_test()})
    write_log(folder / "run")
    page_of(folder / "run")
    return folder


@pytest.fixture
def page(made) -> str:
    return (made / "out" / "report.html").read_text()


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory, model) -> str:
    """The page of a run whose texts, names and settings are all EVIL."""
    return page_of(evil_run(tmp_path_factory.mktemp("evil") / "run", model))


def spread(mean: float) -> dict:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


def write_study(study: Path, model: Path, kind: str, labels: dict[str, object]) -> None:
    """A study whose runs are plain; row i has accuracy 0.7 + i/100, 100 - 10 i tokens and AES i/10."""
    rows = []
    for i, (label, value) in enumerate({"base": None, **labels}.items()):
        measures = {
            "accuracy": spread(0.7 + i / 100),
            "mean_tokens": spread(100 - 10 * i),
            "length_cut": spread(i / 10),
            "accuracy_gain": spread(i / 100),
            "aes": spread(i / 10) if i else None,
        }
        name = f"seed-0/{label.replace(' ', '-')}"
        if i:
            write_run(study / name, model, {"arithmetic": plain_test()})
            write_log(study / name)
        rows.append(
            {
                "label": label,
                "value": value,
                "runs": [name] if i else [],
                "average": measures,
                "tests": {"arithmetic": measures},
                "inference": {"seconds": 2.0, "ratio": 1 - i / 8} if kind == "compare" else None,
            }
        )
    write_json(
        study / "result.json", {"study": kind, "tests": ["arithmetic"], "seeds": 3, "rows": rows, "settings": {}}
    )


class Tags(HTMLParser):
    """Every element of a page with its attributes, and the text outside of scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.quiet = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.quiet = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self.quiet = None

    def handle_data(self, data):
        if self.quiet is None:
            self.text.append(data)

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page_of(folder: Path, *others: Path) -> str:
    out = folder.parent / "out" / "report.html"
    assert write_page([folder, *others], out) == out
    return out.read_text()


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


def test_the_table_of_a_run_holds_its_numbers(made, page):
    words = Tags(page).words()
    base = json.loads((made / "run" / "result.json").read_text())["base"]
    assert base["accuracy"] == 0.75  # three of four by hand
    assert f"arithmetic base 75.0 % 37.5 to 87.5 % {base['mean_tokens']:.1f} " in words
    pruned = len(FIRST + ANSWER) + 1  # a byte is a token, and one ends the text
    assert f"arithmetic pruned 75.0 % 37.5 to 87.5 % {pruned}.0 {pruned} 12.5 %" in words
    assert f"−{100 * (1 - pruned / base['mean_tokens']):.1f} % +0.0 points" in words
    assert "2 problems, 2 completions of each" in words


def test_every_chart_has_its_numbers_beside_it(page):
    tags = Tags(page)
    titles = (
        "Length of completions",
        "Accuracy against length",
        "Length by difficulty",
        "Reward",
        "Clip fraction",
        "Length of what is trained on",
        "Ratio to the reference",
        "KL from the reference (estimate)",
    )
    for title in titles:
        assert f"{title} " in tags.words()
        assert ("div", f"Numbers of {title}") in [(tag, a.get("aria-label")) for tag, a in tags.found]
        assert any(tag == "svg" and a["aria-label"].startswith(title) for tag, a in tags.found)
    assert "First to last step: 0.5 to 3." in tags.words()  # the reward, and the clip fraction in percent
    assert "First to last step: 10 to 60." in tags.words()
    lengths = [len(FIRST + again + ANSWER) + 1 for again in (AGAIN, AGAIN * 2)]
    assert re.search(rf"level 1 1 {sum(lengths) / 2:.1f} {len(FIRST + ANSWER) + 1}.0", tags.words())


def test_thirds_stand_in_where_problems_have_no_level(tmp_path, model):
    problems = [problem(f"p-{i}") for i in range(3)]
    texts = [[("a b", k < i) for k in range(2)] for i in range(3)]
    write_run(tmp_path / "run", model, {"plain": (problems, texts, texts)})
    assert "hardest third 1 4.0 4.0 +0.0 % 0.0 % 0.0 % middle third 1 4.0" in Tags(page_of(tmp_path / "run")).words()


def test_several_tests_have_an_average(tmp_path, model):
    result = write_run(tmp_path / "run", model, {"one": plain_test(), "two": plain_test(3)})
    words = Tags(page_of(tmp_path / "run")).words()
    assert f"average base {100 * result['base']['accuracy']:.1f} % " in words
    assert "Test: one" in words and "Test: two" in words


def test_a_run_without_a_clipped_objective_has_the_curves_it_logged(tmp_path, model):
    write_run(tmp_path / "run", model, {"arithmetic": plain_test()})
    words = Tags(page_of(tmp_path / "run")).words()
    assert "No optimiser step was logged" in words and "Reward" not in words  # fast-prompt trains nothing
    write_log(tmp_path / "run", ratio_mean=None, clip_fraction=None, approx_kl=None)
    words = Tags(page_of(tmp_path / "run")).words()
    assert "Reward" in words and "Clip fraction" not in words


def test_the_page_loads_nothing_and_has_no_stray_ids(page):
    tags = Tags(page)
    for _, attributes in tags.found:
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page and "<link" not in page
    ids = [a["id"] for _, a in tags.found if "id" in a]
    assert len(ids) == len(set(ids))
    used = {*re.findall(r"url\(#([^)]+)\)", page), *(a["href"][1:] for t, a in tags.found if t in ("use", "a"))}
    assert used <= set(ids)
    policy = next(a["content"] for t, a in tags.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe-inline" not in policy.split(";")[1]


def test_the_same_runs_give_the_same_bytes(made, page, tmp_path):
    assert write_page([made / "run"], tmp_path / "again.html").read_text() == page


def evil_run(folder: Path, model: Path) -> Path:
    problems = [problem(EVIL, EVIL + "x" * 400, EVIL, EVIL)]
    texts = [[(EVIL * 3, True), ("plain", False)]]
    write_run(folder, model, {"t": (problems, texts, texts)})
    settings = json.loads((folder / "settings.json").read_text())
    write_json(folder / "settings.json", settings | {"note": EVIL})
    return folder


def test_a_strangers_text_makes_no_element(evil_page):
    tags = Tags(evil_page)
    assert [t for t, _ in tags.found].count("script") == 2  # the data and the browser
    assert not any(t == "img" or any(name.startswith("on") for name in a) for t, a in tags.found)
    assert "<script>window" not in evil_page and "<img" not in evil_page
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', evil_page)[1])
    assert data[0]["problems"][0]["question"].startswith(EVIL)
    assert "".join(piece for piece, _ in data[0]["problems"][0]["before"][-1]["parts"]) == EVIL * 3


def test_json_in_a_script_cannot_end_it():
    text = embed(["</script><!--&\u2028"])
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == ["</script><!--&\u2028"]


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


def test_the_page_of_a_study_shows_its_rows_and_its_runs(tmp_path, model):
    write_study(tmp_path / "study", model, "compare", {"sft": "sft", "o1-pruner": "o1-pruner"})
    page = page_of(tmp_path / "study")
    words = Tags(page).words()
    assert "base 70.0 % 69.0 to 71.0 % 100.0 " in words
    assert (
        "o1-pruner 72.0 % 71.0 to 73.0 % 80.0 80.0 to 80.0 20.0 % 19.0 to 21.0 % 0.20 0.19 to 0.21 0.75 × 2.00 s"
        in words
    )
    for title in ("Accuracy against length, all rows", "Accuracy-efficiency score", "Inference time", "Clip fraction"):
        assert title in words
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert [s["label"] for s in data] == ["study, sft, arithmetic", "study, o1-pruner, arithmetic"]


@pytest.mark.parametrize(
    "kind, labels",
    [
        ("lambda", {"lambda 0": 0.0, "lambda 2": 2.0}),
        ("difficulty", {"percentiles 0-40": "0-40", "percentiles 60-100": "60-100"}),
    ],
)
def test_an_ablation_has_its_charts(tmp_path, model, kind, labels):
    write_study(tmp_path / "study", model, kind, labels)
    words = Tags(page_of(tmp_path / "study")).words()
    assert f"Accuracy by {kind}" in words and f"Length by {kind}" in words
    assert "Accuracy (%); the base (dashed) has 70.0." in words
    assert list(labels)[1] in words and "percentiles 0−40" not in words


def test_disharmony_has_its_chart_and_its_table(tmp_path):
    parts = [
        {
            "interval": i + 1,
            "accuracy": 0.9 - 0.1 * i,
            "accuracy_low": 0.85 - 0.1 * i,
            "accuracy_high": 0.95 - 0.1 * i,
            "mean_tokens": 50.0 * (i + 1),
        }
        for i in range(4)
    ]
    rows = [
        {"label": label, "problems": 64, "intervals": parts, "gap": {"mean": -0.3, "low": -0.35, "high": -0.25}}
        for label in ("all", "level 3")
    ]
    study = tmp_path / "study"
    study.mkdir()
    write_json(
        study / "result.json", {"study": "disharmony", "problems": 64, "samples": 512, "intervals": 4, "rows": rows}
    )
    words = Tags(page_of(study)).words()
    assert "all 64 90.0 % 85.0 to 95.0 %; 50 tokens 80.0 %" in words
    assert "−30.0 −35.0 to −25.0" in words
    assert "level 3 4 200.0 60.0 % 55.0 to 65.0 %" in words  # the numbers beside the chart
    assert 'id="samples"' not in (tmp_path / "out" / "report.html").read_text()


def test_folders_that_are_no_run_say_what_makes_one(tmp_path, run):
    with pytest.raises(
        UserError, match=r"nowhere: holds no result.json; `o1core prune --out .*nowhere` or `o1core study"
    ):
        write_page([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(UserError, match=r"arithmetic: is no run or study; `o1core prune --out RUN`"):
        side = run / "base" / "arithmetic"
        write_json(side / "result.json", {"accuracy": 1.0})
        write_page([side], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"base": {"accuracy": "high", "mean_tokens": 1}}, 'base: accuracy: must be a number, not "high"'),
        ({"base": {"accuracy": 1}}, "base: lacks mean_tokens"),
        ({"length_cut": None}, "length_cut: must be a number, not null"),
        ({"length_cut": float("nan")}, "length_cut: must be a number, not NaN"),
        ({"tests": {}}, "tests: is empty"),
        ({"tests": []}, "tests: must be an object"),
    ],
)
def test_a_broken_result_is_named(run, edit_json, change, said):
    write_json(run / "result.json", json.loads((run / "result.json").read_text()) | change)
    with pytest.raises(UserError, match=re.escape(said)):
        write_page([run], run / "report.html")


@pytest.mark.parametrize("name", ["../../other", "/etc", ".", "", "a/b", "..", "nul\0"])
def test_the_name_of_a_test_stays_in_its_run(run, name):
    result = json.loads((run / "result.json").read_text())
    result["tests"] = {name: result["tests"]["arithmetic"]}
    write_json(run / "result.json", result)
    with pytest.raises(UserError, match=r"leads out of|is no name of a test"):
        write_page([run], run / "report.html")


@pytest.mark.parametrize("place", ["../run", "seed-0/../../run", "{absolute}", "link", "."])
def test_the_runs_of_a_study_stay_in_its_folder(tmp_path, model, run, place):
    write_study(tmp_path / "study", model, "lambda", {"lambda 2": 2.0})
    (tmp_path / "study" / "link").symlink_to(run)
    result = json.loads((tmp_path / "study" / "result.json").read_text())
    result["rows"][1]["runs"] = ["seed-0/lambda-2", place.format(absolute=run)]
    write_json(tmp_path / "study" / "result.json", result)
    with pytest.raises(UserError, match="leads out of"):
        write_page([tmp_path / "study"], tmp_path / "report.html")


def test_a_study_without_its_runs_names_the_command(tmp_path, model):
    write_study(tmp_path / "study", model, "lambda", {"lambda 2": 2.0})
    shutil.rmtree(tmp_path / "study" / "seed-0")
    with pytest.raises(UserError, match=r"lambda-2: is not there; `o1core study lambda --out .*study` makes it again"):
        write_page([tmp_path / "study"], tmp_path / "report.html")


def test_two_runs_of_one_name_are_told_apart(tmp_path, model):
    for parent in ("a", "b"):
        write_run(tmp_path / parent / "run", model, {"t": plain_test()})
    words = Tags(page_of(tmp_path / "a" / "run", tmp_path / "b" / "run")).words()
    assert "a/run" in words and "b/run" in words


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


def test_hidden_characters_are_shown_as_such(tmp_path, model):
    texts = [[("a\u202eb\x1b[2J\u200b", True)]]
    write_run(tmp_path / "run", model, {"t": ([problem("p")], texts, texts)})
    data = json.loads(re.search(r'id="data">(.*?)</script>', page_of(tmp_path / "run"))[1])
    assert data[0]["problems"][0]["before"][0]["parts"] == [["a\ufffdb\ufffd[2J\ufffd", 0]]


def test_labels_are_moved_apart_and_stay_in_order():
    moved = spread_out([5.0, 5.1, 0.0, 9.9], 2.0, 0.0, 10.0)
    assert moved == [5.0, 7.0, 0.0, 9.9]
    assert spread_out([1.0, 1.0, 1.0], 10.0, 0.0, 1.0) == [0.0, 0.5, 1.0]


def test_a_long_curve_is_averaged_and_a_name_is_not_mathematics():
    chart = curves("$T$", "u", [Line("$a_1$ <b>", range(1000), [1.0] * 1000), Line("b", [1], [2.0])], 3)
    svg = to_svg(chart)
    assert "$a_1$ &lt;b&gt;" in svg and "<b>" not in svg
    assert len(chart.rows) <= 45
    assert chart.rows[0] == ["$a_1$ <b>", "24", "1"]


def test_minus_signs_are_for_numbers_alone():
    assert minus("-3 to -.5, o1-pruner 0-40 1e-05") == "−3 to −.5, o1-pruner 0-40 1e-05"
