"""What is shown of other people's text: the names, ids and answers of a checkpoint or a problem file.

Everything that the command line or a report prints passes through here, so that no text can drive a terminal (set its
title, move its cursor, turn its reading order round) or pass off a line of its own as one of ours.
"""

import difflib
import unicodedata
from collections.abc import Iterable

LONGEST_LINE = 4000  # characters: an id may be as long as its file


def clean(text: str) -> str:
    """The text with U+FFFD in place of every control, format, surrogate or unassigned character, other than "\\n"."""
    if text.isprintable():  # then there is none, and most text is
        return text
    return "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else "\ufffd" for c in text)


def one_line(text: str) -> str:
    """The clean text on a single line of at most LONGEST_LINE characters, as an error message is printed. The middle of
    a longer text is left out, since an error begins with the place and ends with how to fix it."""
    if len(text) > LONGEST_LINE:
        half = LONGEST_LINE // 2 - 3
        text = f"{text[:half]} ... {text[-half:]}"
    return clean(" ".join(text.splitlines()))


def nearest(word: str, known: Iterable[str]) -> str:
    """What an error adds for a mistyped name: "; did you mean official?", or nothing where no known name is like it."""
    found = difflib.get_close_matches(word[:100], known, n=1, cutoff=0.7)
    return f"; did you mean {found[0]}?" if found else ""
