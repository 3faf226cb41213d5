"""One self-contained page for runs and studies: tables, charts and a sample browser, without network and build step.

What a model wrote is a stranger's text. It reaches the page in three ways only: through Jinja with autoescape, through
matplotlib's SVG, and as JSON without < > & that the page's script turns into text nodes. A Content-Security-Policy lets
no other script run and nothing be loaded.

Left out on purpose: a clock. The same runs give the same bytes.
"""

import hashlib
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ...evaluation import read_result
from ...files import write_atomic
from ...text import clean
from ...typed_json import to_json
from ..numbers import minus
from .browse import MOST_COMPLETIONS, PAGE_CHARACTERS, BrowserSet, browser_set
from .sections import Section, section_of
from .svg import to_svg


def write_page(runs: list[Path], out: Path) -> Path:
    """Write the page of run folders and study folders to the file `out`; returns it.

    Raises UserError where a folder is neither, or lacks what it says it has.
    """
    sections = [section_of(folder, name, read_result(folder)) for folder, name in zip(runs, names_of(runs))]
    sources = [source for section in sections for source in section.sources]
    budget = PAGE_CHARACTERS // max(1, len(sources))
    page = render(sections, [browser_set(s.label, s.pairs, s.tokenizer, budget) for s in sources])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, lambda path: path.write_text(page, encoding="utf-8"))
    return out


def names_of(runs: list[Path]) -> list[str]:
    """A short name for each folder, with its parent's where two would have the same."""
    full = [run.resolve() for run in runs]
    alike = [sum(f.name == other.name for other in full) > 1 for f in full]
    return [f"{f.parent.name}/{f.name}" if twice else f.name for f, twice in zip(full, alike)]


def render(sections: list[Section], sets: list[BrowserSet]) -> str:
    """The page. What is Markup here is ours: the style, the script, the charts' SVG, and the escaped JSON."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
    )
    environment.filters["svg"] = lambda chart: Markup(to_svg(chart))
    environment.filters["minus"] = minus
    here = Path(__file__).parent
    style, script = (Markup((here / f"page.{kind}").read_text(encoding="utf-8").strip()) for kind in ("css", "js"))
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        sections=sections,
        sets=sets,
        data=embed(to_json(sets)),
        style=style,
        script=script,
        digest=digest,
        most=MOST_COMPLETIONS,
    )


def shown(value: Any) -> Any:
    """What the template prints: text without control characters, which are not characters of HTML."""
    return clean(value.replace("\t", " ")) if isinstance(value, str) and not isinstance(value, Markup) else value


def embed(value: Any) -> Markup:
    """JSON that is safe inside a <script>, whatever the text in it says."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
