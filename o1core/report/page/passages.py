r"""Passages that a completion repeats: the re-checks that pruning is meant to take away.

A completion is cut into clauses, at line ends and at , . ; : ! ? before a space. A clause repeats where the same clause,
in normal form, occurs earlier in the same completion. The normal form forgets case, spaces around operators, LaTeX's
dollars and spacing, and the words a thought turns over with ("Wait, ", "then", "so"): "47+8=55" is found again in
"Then 47 + 8 = 55.". Clauses that say too little to be a re-check, such as "Yes" and "x=5", do not count.

Left out on purpose: paraphrases. Finding them takes a model, and a model can be wrong.
"""

import re
import unicodedata

CUT = re.compile(r"(?:[,.;:!?]+(?=\s|$)|\n)\s*")
TURNING = "first then so wait hmm now next and but or again also finally yes no ok okay well thus hence therefore alternatively"
TURNS = frozenset(TURNING.split())
LATEX = (
    (r"\\(?:left|right|displaystyle|,|;|!|\(|\)|\[|\])|\$", ""),
    (r"\\(?:times|cdot)(?![a-z])|×|·", "*"),
    ("[−–]", "-"),
)
FEWEST_WORDS, FEWEST_CHARACTERS = 4, 5  # of a clause without an equation; of an equation


def normal_form(clause: str) -> str:
    """What two clauses share when they say the same; empty where the clause says too little."""
    text = unicodedata.normalize("NFKC", clause).lower()
    for pattern, plain in LATEX:
        text = re.sub(pattern, plain, text)
    text = re.sub(r"\s*([=+*/<>^-])\s*", r"\1", text)
    words = re.findall(r"[^\s,;:!?\"'`]+", text)
    while words and words[0].strip(".*#") in TURNS:
        del words[0]
    text = " ".join(words).strip(".* ")
    equation = "=" in text and len(text) >= FEWEST_CHARACTERS
    return text if equation or len(words) >= FEWEST_WORDS else ""


def repeats(text: str) -> list[tuple[str, bool]]:
    """The text in parts, each with whether it repeats an earlier one; the parts joined are the text.

    Neighbouring repeats are one part, with what is between them.
    """
    seen: set[str] = set()
    parts: list[tuple[str, bool]] = []  # each with whether it repeats
    start = 0
    while start < len(text):
        found = CUT.search(text, start)
        end, after = found.span() if found else (len(text), len(text))
        form = normal_form(text[start:end])
        again = bool(form) and form in seen
        seen.add(form)
        if parts and parts[-1][1] == again:
            parts[-1] = (parts[-1][0] + text[start:after], again)
        else:
            parts.append((text[start:after], again))
        start = after
    return without_trailing_marks(parts)


def without_trailing_marks(parts: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Move the punctuation and space at the end of a repeat to the part after it."""
    done: list[tuple[str, bool]] = []
    carry = ""
    for text, repeated in parts:
        text, carry = carry + text, ""
        if repeated:
            bare = text.rstrip(" \n\t,.;:!?")
            text, carry = bare, text[len(bare) :]
        if text:
            done.append((text, repeated))
    return [*done, (carry, False)] if carry else done


def repeated_fraction(parts: list[tuple[str, bool]]) -> float:
    """The fraction of the characters that repeat."""
    total = sum(len(text) for text, _ in parts)
    return sum(len(text) for text, repeated in parts if repeated) / total if total else 0.0
