"""The answer in a completion, or in a published solution: regular expressions, each linear in the length of the text.

Left out on purpose: a model that finds the answer. The rules are few, and the docstrings state them.
"""

import re
from dataclasses import dataclass

from .quantities import read_quantity, simple_value

_UNSIGNED = r"(?:[1-9]\d{0,2}(?:,\d{3}){1,9}(?!\d)|\d+)(?:\.\d+)?|\.\d+"  # {1,9}: without a bound, quadratic
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BRACELESS_BOX = re.compile(r"\\(?:boxed|fbox)\s*([-+]?[\d.,/]*\d)")
_GSM8K = re.compile(rf"^[ \t]*####[ \t]*\$?([-+]?\$?(?:{_UNSIGNED})[ \t]*%?)\.?[ \t]*\r?$", re.MULTILINE)
_MARKS = r"[\s*$_]{0,8}"
_CHOICE = re.compile(
    rf"(?:\b(?:[Aa]nswer|ANSWER|[Oo]ption|[Cc]hoice){_MARKS}(?:\s+is\s*:?|:)|答案(?:是|为|选)?[:：]?|[故此以]选[:：]?"
    rf"|\b(?:[Rr]espuesta(?:\scorrecta)?|[Rr]éponse(?:\scorrecte)?|[Aa]ntwort|[Rr]esposta|[Rr]isposta|[Оо]твет){_MARKS}(?:\s(?:es|est|ist|é|è)\b:?|:))"
    rf"{_MARKS}(?:(?:[Oo]ption|[Cc]hoice){_MARKS})?(?:\\(?:text|textbf|mathrm|mathbf|boldsymbol)\{{)?"
    r"(?:\(([A-Ja-j])\)|([A-J])(?!\s*,\s*[A-J]\b)(?=[*$}]*(?:\s*$|\s*\n|[.,;:)。，])))"
)
_CHOSEN = re.compile(
    rf"(?:\b(?:[Oo]ption|[Cc]hoice){_MARKS}\(?([A-J])\)?[*$]*\s+is\s+(?:the\s+)?(?:correct|right|best)\b"
    r"|(?<![\w\\{])\(?([A-J])\)?[*$]*\s+is\s+(?:the\s+)?correct\b)"
)
_LONE_LETTER = re.compile(r"[ \t*(]{0,8}([A-J])[).* \t]{0,8}")
_ANSWER_IS = re.compile(r"\b[Aa]nswer(?:\s*:|\s+is\b(?:\s*:)?)")
# "The answer is", "**Answer:**", "the final answers are", "the answer to this, then, would be", a heading "Final Answer".
_ANSWER_AT = re.compile(
    r"(?:\b(?:[Aa]nswers?|ANSWERS?)[*_]{0,3}\s?(?:[^.:?!\n$\\]{0,60}?\b(?:is|are|be)\b|=)?\s?:?"
    r"|\b[Ff]inal\s[Aa]nswer\b(?=[*_#:\s]{0,8}\n)|答案\s?(?:是|为|[:：]))[*_]{0,3}:?[*_]{0,3}"
)
_STATES = re.compile(r"(?:is|are|be|=|[:：]|是|为|[Ff]inal\s[Aa]nswer)[*_]{0,3}$")
_MATH = (("$$", "$$"), (r"\[", r"\]"), (r"\(", r"\)"), ("$", "$"))
_GLUE = re.compile(
    r"(?:[\s,;.&*$]|\\[()\[\],;:!\\ ]|\\q?quad(?![A-Za-z])|(?:\\(?:text|mbox)\{\s*,?\s*(?:and|or)\s*\}|\band\b|\bor\b)"
    r"|\\?[A-Za-z]{1,6}(?:_\{?\w{1,4}\}?)?\s*=|\(?[a-z\d]\)|[-•])*"
)
_MONEY = re.compile(r"[\s*]*([-−]?\\?\$\s?[-−]?\\?\s?(?:" + _UNSIGNED + r"))(?!\s*[-\\^+*/=_!(])")
_SENTENCE = re.compile(r"(?:[.!?;。](?=[\s*]|$)|\n|\s+(?:because|since|as|which|when|where|so|while)\b)")
_WORDS = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_FUNCTION = re.compile(
    r"(?:arc)?(?:sin|cos|tan|sec|csc|cot)h?|sqrt|cbrt|pi|ln|log|exp|infinity|inf|and|or|e|i|theta|alpha|beta"
)
WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|textrm|mbox|mathit)\{([^{}\\]*)\}")
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_NUMBER = re.compile(
    rf"-?\\[dt]?frac\{{-?\d+\}}\{{\d+\}}|(?<![\w.])(?:(?<![\w)}}])[-−])?(?:{_UNSIGNED})(?:\s?/\s?\d+)?(?:\s?\\?%)?"
)
_END_LINES = 3  # where a bare number may stand: models close with a friendly line or two
_LAST_TRIES = 20  # of the places that announce an answer
_MAX_WORDS = 120  # characters from "answer is" to the text's end, where it states words
_MAX_STATED = 2000  # characters of a formula or sentence that is taken for an answer


@dataclass(frozen=True)
class ThoughtTags:
    """What opens and closes a thought, in any of the spellings that a checkpoint uses."""

    opens: tuple[str, ...]
    closes: tuple[str, ...]


THINK = ThoughtTags(opens=("<think>",), closes=("</think>",))


def after_thought(text: str, tags: ThoughtTags = THINK, in_thought: bool = False) -> str | None:
    """The part of a completion in which its answer is looked for: what follows the last closing tag, or all of a text
    without any. None where the text, or the prompt before it (in_thought), opens a thought that never closes: what stands
    in there are tries, and a model that was paid for them would learn never to finish.
    """
    end = max((at + len(tag) for tag in tags.closes if (at := text.rfind(tag)) >= 0), default=0)
    rest = text[end:]
    if (in_thought and end == 0) or any(tag in rest for tag in tags.opens):
        return None
    return rest


def leaves_thought_open(prompt: str, tags: ThoughtTags = THINK) -> bool:
    """Whether a prompt ends inside a thought that its template has opened. A tag within the question opens none."""
    return prompt.rstrip().endswith(tags.opens)


def extract_answer(text: str) -> str | None:
    r"""The answer of a completion after its thought (or of a published solution), or None. In this order:

    1. the last \boxed{...} or \fbox{...} with balanced braces that is not empty (of nested ones the inner; a box cut
       off at the end of the text does not count; "\boxed 17" does). Different boxes with nothing but "and", commas or
       "x =" between them are one answer of several values;
    2. the last line that is GSM8K's "#### 1,234";
    3. the last "answer is (B)", "Answer: B" or "option C is correct", letters A to J; or a last line that is a letter
       alone, "**B**" or "(B)";
    4. what the last "the answer is" or "Answer:" states: the whole of a formula in $...$, \(...\) or \[...\], or a
       sentence that is an expression or a number with its unit;
    5. near the end of the text, the last bare number: "1,234.5", "-3", "3/4", "\frac{3}{4}", "50%", or the formula that it
       stands in, or the values of "x = 5 or x = -3";
    6. the few words that "answer is" states.

    Of several <answer>...</answer> without a box the last is looked at alone.
    """
    boxes = last_boxes(text)
    if boxes:
        return ", ".join(boxes)
    before, tag, _ = text.rpartition("</answer>")
    if tag and "<answer>" in before and (inside := before.rpartition("<answer>")[2].strip()):
        whole = _formula_at_start(inside) or _expression_at_start(inside)
        return whole or extract_answer(inside) or (inside if _FEW_WORDS.fullmatch(inside) else None)
    if "####" in text and (found := _GSM8K.findall(text)):
        return found[-1].strip()
    if (letter := _chosen_letter(text)) is not None:
        return letter
    if (stated := _stated_answer(text)) is not None:
        return stated
    return _last_number(text) or _stated_words(text)


def _chosen_letter(text: str) -> str | None:
    found = [(match.end(), match[1] or match[2]) for match in _CHOICE.finditer(text)]
    if " is " in text:
        found += [(match.end(), match[1] or match[2]) for match in _CHOSEN.finditer(text)]
    if found:
        return max(found)[1].upper()
    match = _LONE_LETTER.fullmatch(text.rstrip().rpartition("\n")[2])
    return None if match is None else match[1]


def _stated_answer(text: str) -> str | None:
    """What stands behind the last words that announce an answer, where that is a formula or an expression alone."""
    if "nswer" not in text and "NSWER" not in text and "答案" not in text:
        return None
    for match in reversed(list(_ANSWER_AT.finditer(text))[-_LAST_TRIES:]):
        if _STATES.search(match[0].rstrip()):
            rest = text[match.end() : match.end() + _MAX_STATED].lstrip(" \t\r\n*_#:>")
            answer = _formula_at_start(rest) or _expression_at_start(rest)
            if answer is not None:
                return None if _CONCLUDES.search(rest[len(answer) :]) else answer
    return None


_FEW_WORDS = re.compile(r"[^\W\d_]{1,20}(?:[\s-][^\W\d_]{1,20}){0,3}")


def _stated_words(text: str) -> str | None:
    """The words behind the last "answer is": "Monday"."""
    tail = text.rstrip()[-_MAX_WORDS:]
    found = list(_ANSWER_IS.finditer(tail)) if "nswer" in tail else []
    said = tail[found[-1].end() :].strip(" \t\r\n*_.") if found else ""
    return said if _FEW_WORDS.fullmatch(said) else None


# Where this follows, the answer was that to a step.
_CONCLUDES = re.compile(r"\b(?:So|Thus|Hence|Therefore|Then|Finally|Now|Next)\b[^\n]*\d")


def _formula_at_start(rest: str) -> str | None:
    r"""The formula in math signs that a text begins with: "$2\sqrt{3}$ cm." With the words behind it that change it, and
    with the others of a list: "$1$ and $2$". None where the sentence goes on to something else: "$9 + 9$, so 18"."""
    if _MONEY.match(rest) and not _closes_at_once(rest):
        return None
    found, at = [], 0
    while (span := _math_at(rest, at)) is not None:
        found.append(_last_side(rest[span[0] : span[1]]))
        at = span[2]
        if (glue := _BETWEEN_FORMULAS.match(rest, at)) is None:
            break
        at = glue.end()
    if not found or _GOES_ON.match(rest, at):
        return None
    words = _CHANGING_WORDS.match(rest, at)
    return ", ".join(found) + (words[0] if words and len(found) == 1 else "")


_BETWEEN_FORMULAS = re.compile(r"[\s,*]*(?:and|or|,)[\s*]*(?=[$\\])")
_GOES_ON = re.compile(r"[\s,;]*(?:=|\b(?:so|thus|hence|therefore|giving|which\s+gives|or\s+just)\b(?=[^\n]*\d))")
_CHANGING_WORDS = re.compile(
    r"\s*(?:\\?%|(?:percent|hundred|thousand|million|billion|trillion|dozen|tenths|halves|[ap]\.?m\.?)(?![a-z]))",
    re.IGNORECASE,
)
_COUNTS_ON = re.compile(r"\s+(?:so|which)\b[^.\n]*\d")
_EQUALS = re.compile(r"(?<![<>!\\:])=|(?<=[\d)}]!)=|\\(?:approx|to|Rightarrow|Longrightarrow|implies)(?![A-Za-z])")


def _last_side(formula: str) -> str:
    r"""A formula without what leads to a number: "9 + 9 = 18" is 18. One that ends otherwise stays whole: "x = 2\sqrt{3}"."""
    *others, last = (_bare(side) for side in _EQUALS.split(formula))
    if (
        len(others) == 1
        and re.search(r"(?<![\\A-Za-z])[a-z](?![A-Za-z(])", others[0])
        and re.search(r"[-+^]", others[0])
    ):
        return _bare(formula)  # an equation is an answer, too: "2x + z - 5 = 0"
    is_number = _NUMBER.fullmatch(last) is not None or read_quantity(last) is not None
    return last if is_number and not re.search(r",(?!\d{3})", formula) else _bare(formula)


def _bare(formula: str) -> str:
    """A formula without a full stop, an alignment sign and braces around the whole."""
    text = _ENVIRONMENT.sub("", formula).strip().rstrip(".,; &\\").lstrip(" &")
    while text.startswith("{") and text.endswith("}") and _BALANCED.fullmatch(text[1:-1]):
        text = text[1:-1].strip().rstrip(".,;")
    return text


_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{(?:align|aligned|gather|equation|split)\*?\}")
_BALANCED = re.compile(r"(?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*+")


def _math_at(text: str, at: int) -> tuple[int, int, int] | None:
    """(start, end, place after the closing sign) of the formula that begins at a place."""
    for opens, closes in _MATH:
        if text.startswith(opens, at):
            start = at + len(opens)
            end = text.find(closes, start)
            while end > 0 and closes[0] == "$" and text[end - 1] == "\\":
                end = text.find(closes, end + 1)
            inside = text[start:end] if end > 0 else ""
            if not inside.strip() or (opens == "$" and "\n" in inside):
                return None
            return start, end, end + len(closes)
    return None


def _closes_at_once(rest: str) -> bool:
    r"""Whether a dollar sign before a number opens a formula: "$5$" and "$10t + 12$" do, "$5 and $6" is money."""
    match = re.match(r"\s*\$([^$\n]*)\$", rest)
    if match is None or match[1].rstrip().endswith(("=", "+", "-", "*", "/")):
        return False
    words = _WORDS.findall(re.sub(r"\\(?:text|mbox|mathrm)\{[^{}]*\}", "", match[1]))
    return all(word in _NO_WORDS or (len(word) == 2 and word not in _SMALL_WORDS) for word in words)


_NO_WORDS = {"sin", "cos", "tan", "sec", "csc", "cot", "log", "ln", "exp", "sqrt", "pi"}
_SMALL_WORDS = {"is", "at", "in", "of", "to", "on", "by", "as", "so", "it", "we", "he", "if", "or", "an"}


def _expression_at_start(rest: str) -> str | None:
    """The sentence that a text begins with, where it is nothing but an expression, or a number with its unit."""
    end = _SENTENCE.search(rest)
    if end is not None and (end[0] == "?" or _COUNTS_ON.match(rest, end.start())):
        return None
    sentence = rest[: end.start() if end else len(rest)].strip(" \t\r*_`").rstrip(".,;:")
    if not sentence or len(sentence) > 200 or not re.search(r"\d|[^\W\d_]", sentence):
        return None
    if _FOR_MONEY.fullmatch(sentence) or _NUMBER_AND_UNIT.fullmatch(sentence):
        return sentence
    words = _WORDS.findall(sentence)
    if "$" in sentence or any(_FUNCTION.fullmatch(word) is None for word in words):
        return None
    return sentence if re.search(r"\d|[√π]|\\|=|\bpi\b", sentence) else None


_FOR_MONEY = re.compile(rf"[-−]?\\?\$\s?[-−]?(?:{_UNSIGNED})(?:\s+(?:hundred|thousand|million|billion|trillion))?")
_NUMBER_AND_UNIT = re.compile(
    rf"[-−+]?(?:{_UNSIGNED})(?:\s?/\s?\d+)?\s?(?:(?:[^\W\d_]|[.°/²³\s]|\^\{{?[23]\}}?){{1,40}}|\\?%|:\d\d(?:\s?[apAP]\.?\s?[mM]\.?)?)"
)


def _last_number(text: str) -> str | None:
    lines = [line for line in text.splitlines() if line.strip()][-_END_LINES:]
    for line in reversed(lines):
        if found := list(_NUMBER.finditer(line)):
            several = _values_at_end(line, found[-1])
            return several or _formula_around(line, found[-1]) or found[-1][0].strip()
    return None


_SAYS = re.compile(
    r"(?<![\w\\}+\-^|)*/.])([a-zA-Z])(?:_\{?(\d)\}?)?\s*=\s*"
    r"((?:[^\s=$,;A-Za-z\\|]|\\(?:[dt]?frac|sqrt|pi|pm|left|right)(?![A-Za-z])|\s?[-+]\s?){1,60}+)(?!\s*=)"
)
_OR = re.compile(r"[\s$\\(),;]*(?:\\text\{\s*(?:or|and)\s*\}|\bor\b|\band\b|,)[\s$\\(),;]*(?:\band\b[\s$\\()]*)?")


def _values_at_end(line: str, number: re.Match[str]) -> str | None:
    """The values of "x = 5 or x = -3", of one name, where the last of them holds the last number of a line."""
    said = list(_SAYS.finditer(line))
    if len(said) < 2 or not said[-1].start() < number.start() < said[-1].end():
        return None
    values = [said[-1]]
    for before, after in zip(reversed(said[:-1]), reversed(said)):
        if (
            before[1] != after[1]
            or before.end() == after.start()
            or not _OR.fullmatch(line, before.end(), after.start())
        ):
            break
        values.append(before)
    values.reverse()
    if [match[2] for match in values] not in ([None] * len(values), [str(i + 1) for i in range(len(values))]):
        return None  # s_5, s_6 and s_7 are members of a sequence; x_1 and x_2 are two solutions
    found = [match[3].rstrip(".)\\") for match in values]
    return ", ".join(found) if len(set(found)) > 1 else None


_TUPLE = re.compile(r"\s*[(\[][^()\[\]$]+,[^()\[\]$]+[)\]]\s*")


def _formula_around(line: str, number: re.Match[str]) -> str | None:
    r"""The formula whose last number was found, where the number is no value of its own there: \(2\sqrt{3}\), 2^10."""
    at = number.start()
    for opens, closes in _MATH:
        start = line.rfind(opens, 0, at + 1)
        end = line.find(closes, max(number.end(), start + len(opens))) if start >= 0 else -1
        inside = line[start + len(opens) : end] if end >= 0 else ""
        if _TUPLE.fullmatch(inside):
            return inside
        if not inside or closes in inside or not re.search(r"\\[a-z]|\^", inside):
            continue
        value = _bare(re.split(r",(?!\d{3})|\\[lg]eq?(?![a-z])|[<>]", _EQUALS.split(inside)[-1])[-1])
        return None if _NUMBER.fullmatch(value) else value or None
    before = line[:at].rpartition(" ")[2] + line[at : number.end()]
    return before.strip("*_`.,") if re.search(r"(?:\^|√|sqrt|\bln|\blog|\bexp)[({]*[\d.,]*$", before) else None


def extract_final(text: str) -> str | None:
    r"""The answer of a completion to a task whose answer may be anything (a word, a board of several lines), or None.

    In this order: the last \boxed{...} as above, without a \text{} around the whole; the last <answer>...</answer>;
    what follows the last "Answer:" or "answer is" on its line, or below it up to a blank line; the last line.
    """
    box = last_box(text)
    if box is not None:
        wrapped = WRAPPED.fullmatch(box)
        return wrapped.group(1).strip() if wrapped else box
    before, tag, _ = text.rpartition("</answer>")
    if tag and "<answer>" in before:
        return before.rpartition("<answer>")[2].strip() or None
    start = max((match.end() for match in _ANSWER_IS.finditer(text)), default=None) if "nswer" in text else None
    if start is not None:
        line, _, below = text[start:].partition("\n")
        answer = line.strip(" \t\r*$`") or _BLANK_LINE.split(below.strip())[0].strip(" \t\r*$`\n")
        if answer:
            return answer
    return text.strip().rpartition("\n")[2].strip() or None


def last_box(text: str) -> str | None:
    """The content of the last complete box that is not empty, or None."""
    spans = _boxes(text)
    return text[slice(*spans[-1])].strip() if spans else None


def last_boxes(text: str) -> list[str]:
    """The contents of the last boxes that are one list, each once: 3, 5 and 7. That of the last one as a rule."""
    spans = _boxes(text)
    if not spans:
        return []
    answers = [text[slice(*spans[-1])].strip()]
    for before, after in zip(reversed(spans[:-1]), reversed(spans)):
        between = text[before[1] : after[0]]
        # From the closing brace of one to the command of the next.
        glue = between[between.startswith("}") : max(between.rfind("\\boxed"), between.rfind("\\fbox"))]
        if len(between) > 120 or _GLUE.fullmatch(glue) is None:
            break
        answer = text[slice(*before)].strip()
        if all(_same_value(answer, other) is False for other in answers):
            answers.append(answer)
    return answers[::-1]


def _same_value(one: str, other: str) -> bool:
    r"""Whether two boxes hold the same number, or the same text: \boxed{12 \text{ cm}} after \boxed{12} adds nothing."""
    values = []
    for text in (one, other):
        quantity = read_quantity(text)
        values.append(simple_value(text if quantity is None else quantity.value))
    return one == other if None in values else values[0] == values[1]


def _boxes(text: str) -> list[tuple[int, int]]:
    """Where the contents of the boxes stand: complete ones that are not empty, and of nested ones the inner."""
    starts = [at for at in (text.find(r"\boxed"), text.find(r"\fbox")) if at >= 0]
    if not starts:
        return []
    # One pass with a stack: looking for the end of each box by itself would be quadratic in a text of open boxes.
    stack: list[int] = []  # where the content of an open box starts, or -1 for another brace
    found: list[tuple[int, int]] = []
    for match in _BRACE.finditer(text, min(starts)):
        token = match.group()
        if token == "{":
            stack.append(-1)
        elif token == "}":
            start = stack.pop() if stack else -1
            if (
                start > (found[-1][0] if found else -1)
                and start < match.start()
                and not text[start : match.start()].isspace()
            ):
                found.append((start, match.start()))
        elif token[-1] == "{" and len(token) > 2:
            stack.append(match.end())
    for match in _BRACELESS_BOX.finditer(text, max(found[-1][0] if found else 0, min(starts))):
        found.append(match.span(1))
    return found
