"""The room that compares two answers symbolically, scores answers to reasoning-gym's tasks and asks the user's own grader.

Requests: {"ways": lists of pairs [predicted, gold], of which one must be equal throughout}, {"predicted", "task"} or
{"text", "problem", "function"}; the reply is {"equal"}. It is run by its path in a process with limits (sandbox.py) and
imports nothing of o1core.

Some of reasoning-gym's scorers pass the answer to Python's eval, or to sympy's parse_expr, which uses eval. Text that is
not a plain expression is never compiled here. While an answer is compared, an audit hook also refuses new processes,
sockets, foreign functions and every change to a file. The user's own grader is no stranger, and is held by the limits alone.
"""

import ast
import contextlib
import functools
import importlib.util
import logging
import math
import os
import re
import sys
import types
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any


def equivalent(predicted: str, gold: str) -> bool:
    """Whether two bare answers (the content of the box) mean the same, by math-verify. There is no time limit here.

    The arguments are not interchangeable: the form of `gold` says what is asked for. Text that no parser understands is
    compared as text. Three things that math-verify accepts are wrong here. An equation states its right side only where
    its left side is a name, or where it is true ("x = 5", "f(2) = 5", "2+3 = 5", but not "2+2 = 5" or "2x = 5"). A
    relation other than "=" does not state a value ("\neq 5", "x > 5"). Nor do several numbers that no parser can relate
    to each other ("6 & 5").
    """
    from math_verify import verify

    if (rounded := _ROUNDED.fullmatch(predicted)) is not None and "=" not in gold and not _relations(gold):
        exact, decimal = rounded.groups()
        if not _is_name(exact) and _same_value(exact, decimal):
            return equivalent(exact, gold) or equivalent(decimal, gold)
    ours, asked = _parse(predicted), _parse(gold)
    if "=" in predicted and "=" not in gold and not _states_right_side(predicted):
        return False
    if _is_stray(predicted, ours) or _is_misread_set(predicted, ours) or _is_misread_set(gold, asked):
        return False
    said = _relations(predicted)
    if said and said != _relations(gold) and not (_holds_relation(ours) and _holds_relation(asked)):
        return False
    return bool(verify(asked, ours, allow_set_relation_comp=True, timeout_seconds=None))


def _guard_numbers() -> None:
    """Makes math-verify compare numbers by their size.

    Its own comparison evaluates a difference with 15 digits and drops what is below 1e-15, or rounds to six decimals:
    1/2^99 passes for 1/2^98, and 9.1e-31 for 1.6e-19. What it calls equal must also be equal here. And what is not equal at
    one point is not simplified, which would take ten times as long to say the same.
    """
    from math_verify import grader
    from sympy import Expr, Interval

    theirs, by_simplifying, of_sets = grader.sympy_numeric_eq, grader.sympy_symbolic_eq, grader.sympy_compare_sets

    def numeric_eq(gold: Any, ours: Any, float_rounding: int, numeric_precision: int) -> bool:
        return theirs(gold, ours, float_rounding, numeric_precision) and same_size(gold, ours)

    def symbolic_eq(gold: Any, ours: Any) -> bool:
        return not differ_at_a_point(gold, ours) and by_simplifying(gold, ours)

    def compare_sets(gold: Any, ours: Any, float_rounding: int, numeric_precision: int) -> bool:
        for one, other in ((gold, ours), (ours, gold)):
            if isinstance(one, Interval) and isinstance(other, Expr):
                return False  # an interval is no number
        return of_sets(gold, ours, float_rounding, numeric_precision)

    grader.sympy_numeric_eq, grader.sympy_symbolic_eq = numeric_eq, symbolic_eq
    grader.sympy_compare_sets = compare_sets


def same_size(gold: Any, ours: Any) -> bool:
    """Whether two expressions that math-verify takes for equal agree relative to their size, too.

    Exact ones must be equal: as fractions, or else to 30 digits. With a decimal among them six decimals are enough, as
    long as they are three digits or more; below a millionth, six digits must agree. Expressions with names are compared
    at one point.
    """
    from math_verify.grader import get_pct_val
    from sympy import Expr, Rational

    if not isinstance(gold, Expr) or not isinstance(ours, Expr):
        return True
    if get_pct_val(gold) is not None or get_pct_val(ours) is not None:  # 50% is 50 and 0.5
        gold, ours = get_pct_val(gold, gold), get_pct_val(ours, ours)
        return any(_near(gold, ours * Rational(factor)) for factor in ("1", "100", "1/100"))
    return _near(gold, ours)


def differ_at_a_point(gold: Any, ours: Any) -> bool:
    """Whether two expressions have values at one point that are far apart. False where either has none there."""
    from sympy import Expr

    if not isinstance(gold, Expr) or not isinstance(ours, Expr):
        return False
    one, other = _at_a_point(gold), _at_a_point(ours)
    return one is not None and other is not None and abs(one - other) > 1e-3 * max(abs(one), abs(other))


@functools.lru_cache(maxsize=1024)
def _at_a_point(expression: Any) -> complex | None:
    """The value of an expression whose names stand for certain rational numbers; None for what has no value at once."""
    import sympy
    from sympy.core.function import AppliedUndef

    arithmetic = (sympy.Add, sympy.Mul, sympy.Pow, sympy.UnevaluatedExpr)
    plain = (*arithmetic, sympy.Number, sympy.NumberSymbol, type(sympy.I), sympy.Symbol, sympy.Function)
    parts = list(sympy.preorder_traversal(expression))
    if any(not isinstance(part, plain) or isinstance(part, AppliedUndef) for part in parts):
        return None
    # Not by its place among the expression's own names: the same name has the same value on both sides.
    point = {name: sympy.Rational(zlib.crc32(str(name).encode()) % 1009 + 11, 101) for name in expression.free_symbols}
    try:
        value = complex(expression.subs(point).evalf(20))
    except (TypeError, ValueError, OverflowError, ArithmeticError):
        return None
    return value if math.isfinite(value.real) and math.isfinite(value.imag) else None


def _near(gold: Any, ours: Any) -> bool:
    from sympy import Float, Rational

    names = sorted(gold.free_symbols | ours.free_symbols, key=str)
    point = {name: Rational(prime, 7) for name, prime in zip(names, _PRIMES)}
    gold, ours = gold.subs(point).doit(), ours.subs(point).doit()
    if gold.is_Rational and ours.is_Rational:
        return bool(gold == ours)
    size, gap = abs(gold.evalf(40)), abs((gold - ours).evalf(40, maxn=400))
    if not (size.is_number and gap.is_number and size.is_finite and gap.is_finite):
        return True
    if gold.has(Float) or ours.has(Float):
        return bool(gap <= size * (1e-3 if size > 1e-6 else 1e-6))
    return bool(gap <= size * Float(10) ** -30)


_PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113)


@functools.lru_cache(maxsize=256)  # a gold answer is asked about once for each sample
def _parse(text: str) -> list[Any]:
    """sympy expressions first, or the text itself where none was found in it."""
    from math_verify import ExprExtractionConfig, parse

    forms = [_tex_form(text), ExprExtractionConfig()]
    # math-verify's own time limits need SIGALRM and a Python handler. The limit of the process replaces them.
    return parse(rf"\boxed{{{text}}}", forms, parsing_timeout=None)


def _is_misread_set(text: str, parsed: list[Any]) -> bool:
    r"""Whether a number was picked out of a set that was not understood: 3 out of \{3k \mid k \in \mathbb{Z}\}."""
    from sympy import Expr

    return text.lstrip().startswith(r"\{") and bool(parsed) and isinstance(parsed[0], Expr)


_SUBSCRIPT = re.compile(r"_(?:\{[^{}]*\}|\\?[A-Za-z\d]+)")
_RELATION = re.compile(
    r"\\(?:not|neq?|[lg]eq?|[lg]t|n?[lg]eq(?:q|slant)|n[lg]eq|[lg]neqq?|nless|ngtr|ll|gg|(?:less|gtr)sim|n?sim|simeq|n?cong"
    r"|equiv|approx(?:eq)?|doteq|asymp|propto|notin|prec(?:eq)?|succ(?:eq)?)(?![A-Za-z])"
    r"|<=|>=|=>|[<>](?<!->)|[≠≤≥⩽⩾≪≫≈≃≅≡∼∝∉≮≯≰≱≁]"
)


_ROUNDED = re.compile(
    r"([^=<>]+?)\s*(?:\\approx(?:eq)?(?![A-Za-z])|\\simeq(?![A-Za-z])|\\doteq(?![A-Za-z]))\s*(-?\d*\.\d+)"
)


def _relations(text: str) -> list[str]:
    r"""The relations other than "=" in a text, those in subscripts left out ("\sum_{k \geq 1}")."""
    return _RELATION.findall(_SUBSCRIPT.sub("", text))


def _holds_relation(parsed: list[Any]) -> bool:
    """Whether a relation was understood as one, or as the set or the tuple that it describes. What was not is a number
    that happened to stand beside it."""
    from sympy import Set, Tuple
    from sympy.logic.boolalg import Boolean

    return bool(parsed) and isinstance(parsed[0], Set | Tuple | Boolean)


_POWER = re.compile(r"\^\s*(?:\{[^{}]*\}|\d)")
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")


def _is_stray(text: str, parsed: list[Any]) -> bool:
    """Whether a number was picked out of text that makes no expression as a whole and holds other numbers."""
    from sympy import Expr

    if not parsed or not isinstance(parsed[0], Expr) or not parsed[0].is_number:
        return False
    last = text.rpartition("=")[2]  # whether the other sides are equal to it is known by now
    if len(_NUMBERS.findall(_POWER.sub("", _SUBSCRIPT.sub("", last)))) < 2:
        return False
    whole = _parse_whole(text)
    return not whole or isinstance(whole[0], str)


@functools.lru_cache(maxsize=256)
def _parse_whole(text: str) -> list[Any]:
    """The same for TeX alone."""
    from math_verify import parse

    return parse(rf"\boxed{{{text}}}", [_tex_form(text)], parsing_timeout=None)


# A letter that is also a unit, where it stands like a factor or a term: in 5x+3t, a + c, \sin t and xy t. In "x + 2 m" it
# stands like a unit.
_FACTOR = re.compile(
    r"(?:[\d})]|[-+*/=(]\s*|_(?:\w|\{\w+\})\s*|\\[A-Za-z]+(?:\^\{?-?\d\}?)?\s*|(?<![A-Za-z])[A-Za-z]\s)[cdghlmost]\s*\.?$"
)


def _tex_form(text: str) -> Any:
    """How math-verify reads TeX: units behind it are dropped, but no factors."""
    from math_verify import LatexExtractionConfig

    form = LatexExtractionConfig(boxed_match_priority=0)
    if _FACTOR.search(text[-40:]) is None:
        return form
    return replace(form, normalization_config=replace(form.normalization_config, units=False))


def _states_right_side(text: str) -> bool:
    """Whether each equation of an answer states its right side. The text may be a list: "x = 5, y = 6"."""
    for item in _split(_AND.sub(",", text), ",;"):
        sides = [side for part in _split(item, "=") if (side := part.strip(" :&"))]  # ":=", "==" and "= 5" too
        if len(sides) > 1:
            others = filter(_ARITHMETIC.fullmatch, sides[1:-1]) if _is_name(sides[0]) else sides[:-1]
            if not all(_same_value(side, sides[-1]) for side in others):
                return False
    return True


_AND = re.compile(r"\\(?:text|mbox)\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b")
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\?.", re.DOTALL)
_OPENS, _CLOSES = {"(", "[", "{", r"\{", r"\begin"}, {")", "]", "}", r"\}", r"\end"}
_ARITHMETIC = re.compile(r"(?:[\d\s.+\-*/^(){}]|\\(?:[dt]?frac|cdot|times|div))+")


def _split(text: str, separators: str) -> list[str]:
    """The parts of a text between separators outside brackets."""
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        depth += (token in _OPENS) - (token in _CLOSES)
        if depth <= 0 and token in separators:
            parts.append("")
        else:
            parts[-1] += token
    return parts


_WRAPPED = re.compile(
    r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mathcal|mathbb|boldsymbol|mbox|operatorname|over(?:line|rightarrow)"
    r"|(?:wide)?hat|bar|vec|tilde|dot)\s*\{[^{}]*\}"
)
_DERIVATIVE = re.compile(r"\\[dt]?frac\s*\{\s*d\s*\w*\s*\}\s*\{\s*d\s*\w\s*\}")
_DECORATION = re.compile(r"\^(?:\{\s*(?:-1|\*|\\prime|T)\s*\}|\*|\\prime|T)|['′]|\\(?:left|right|[,;!:]|quad)")
_ARGUMENT = re.compile(r"(?<=[A-Za-z])\s*\([^()]*\)")
_DEGREES = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot)\s*\(?\{?\s*[\d.]+\s*\^\s*\{?\\circ\}?\s*\}?\)?")
_NO_NAME = re.compile(
    r"[\d+\-*/^!%]|\\(?:[dt]?frac|d?binom|sqrt|cdot|times|div|pm|mp|sum|prod|int|lim)(?![A-Za-z])|\|\s*[a-y]\s*\|"
)


def _is_name(side: str) -> bool:
    r"""Whether the left side of an equation names a quantity: x, a_{10}, f(2), P(A \cap B), \angle ABC, \text{Area},
    \frac{dy}{dx}, (x, y), |AB|. Expressions do not (2x, a+b, x^2, |x|): their value is not that of what was asked for."""
    for pattern, name in ((_DEGREES, "x"), (_DERIVATIVE, "x"), (_SUBSCRIPT, ""), (_DECORATION, ""), (_WRAPPED, "x")):
        side = pattern.sub(name, side)
    while (shorter := _ARGUMENT.sub("", side)) != side:
        side = shorter
    return _NO_NAME.search(side) is None and re.search(r"[^\W\d_]", side) is not None


_BASED = re.compile(r"(?<![\w}\\])(\d[\dA-Z]*)_(?:\{\s*(\d+)\s*\}|(\d+))")


def _same_value(side: str, last: str) -> bool:
    """Whether two sides of an equation are equal, up to the places of a last side that is a decimal number."""
    from math_verify import verify

    one, other = (_parse(_BASED.sub(lambda m: str(int(m[1], int(m[2] or m[3]))), text)) for text in (side, last))
    if verify(other, one, timeout_seconds=None):
        return True
    places = re.fullmatch(r"-?\d*\.(\d{1,12})", last)
    if places is None or not one or isinstance(one[0], str):
        return False
    return bool(abs(one[0].evalf() - float(last)) <= 0.5000001 * 10.0 ** -len(places[1]))


@functools.cache
def _scorer(dataset: str) -> Callable[[str, dict], float]:
    """The scoring function of a task of reasoning-gym, with the default settings that its problems were made with."""
    from reasoning_gym.factory import get_score_answer_fn

    return get_score_answer_fn(dataset)


def scores_full(answer: str, task: dict) -> bool:
    """Whether reasoning-gym scores `answer` 1.0 in the task {"dataset", "entry"}. There is no time limit here."""
    gold = str(task["entry"]["answer"] or "")
    # A scorer that asks whether a distance is too great takes "nan" for right: no comparison with nan is true.
    if "nan" in answer.lower() and "nan" not in gold.lower() and re.fullmatch(r"[-+()\d.\s*aijn]*", answer.lower()):
        return False
    with _guarded(may_compile=is_plain_expression(answer), trusted=gold):
        return _scorer(task["dataset"])(answer, task["entry"]) == 1.0


_FUNCTIONS = {
    *("sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh"),
    *("atanh", "exp", "log", "ln", "sqrt", "pi", "Abs"),
}


def is_plain_expression(text: str) -> bool:
    """Whether `text` consists of numbers, one-letter names, common functions and + - * / ^ % . , ( ) alone. eval may be
    slow on such text, but the text cannot reach anything."""
    words = re.findall(r"[A-Za-z]+", re.sub(r"\b0[xX][0-9a-fA-F]+\b", "0", text))
    known = all(len(word) == 1 or word in _FUNCTIONS for word in words)
    return known and re.fullmatch(r"[A-Za-z0-9\s+\-*/^%.,()]*", text, re.ASCII) is not None


_READS = {"os.listdir", "os.scandir"}  # importing a module does these


class _Guard:
    """What the audit hook allows now."""

    on = False
    may_compile = True  # any text, or none but what is trusted
    trusted: tuple[str | bytes, ...] = ()


@contextlib.contextmanager
def _guarded(may_compile: bool, trusted: str = "") -> Iterator[None]:
    """Turns the guard on. may_compile: any text may be compiled inside, or none but `trusted`, the gold answer, which
    some scorers read by eval."""
    _Guard.on, _Guard.may_compile, _Guard.trusted = True, may_compile, (trusted, trusted.encode())
    try:
        yield
    finally:
        _Guard.on = False


def _refuse(event: str, args: tuple) -> None:
    """The audit hook. Raises PermissionError."""
    if not _Guard.on:
        return
    if event == "compile":  # a module's own source comes with the name of its file
        from_text = str(args[1]).startswith(("<", "None"))
        refused = from_text and not _Guard.may_compile and args[0] not in _Guard.trusted
    elif event == "open":
        refused = bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    else:
        room = event.partition(".")[0]
        refused = room in ("os", "subprocess", "socket", "ctypes", "shutil", "pty", "signal") and event not in _READS
    if refused:
        raise PermissionError(event)


@functools.cache
def _task(text: str) -> dict[str, Any]:
    task: dict[str, Any] = ast.literal_eval(text)
    return task


@functools.cache
def _own_grader(text: str) -> Callable[[str, Any], Any]:
    """The function of FILE.py:function. Its file may import what lies beside it."""
    path, _, name = text.rpartition(":")
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec = importlib.util.spec_from_file_location("own_grader", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look a module up
    spec.loader.exec_module(module)
    found = getattr(module, name)
    if not callable(found):
        raise TypeError(f"{name} is not a function")
    function: Callable[[str, Any], Any] = found
    return function


def start() -> None:
    logging.disable(logging.CRITICAL)
    _guard_numbers()
    # The first call builds the parser's tables, a third of a second that no answer should pay for.
    assert equivalent(r"\frac{2}{4}", "0.5")
    sys.addaudithook(_refuse)


def load(request: dict[str, Any]) -> None:
    """Libraries and files that a request needs: loading them is no answer's fault and has no limit."""
    if "task" in request:
        _scorer(_task(request["task"])["dataset"])
    elif "function" in request:
        _own_grader(request["function"])


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if "function" in request:
        verdict = _own_grader(request["function"])(request["text"], types.SimpleNamespace(**request["problem"]))
        if not isinstance(verdict, bool | int | float) or verdict not in (0, 1):
            raise TypeError(f"it returned {verdict!r:.80}, which is neither right (True) nor wrong (False)")
        return {"equal": bool(verdict)}
    try:
        if "task" in request:
            return {"equal": scores_full(request["predicted"], _task(request["task"]))}
        with _guarded(may_compile=True):  # math-verify passes nothing but plain expressions to a parser
            return {"equal": any(all(equivalent(*pair) for pair in way) for way in request["ways"])}
    except Exception:  # math-verify swallows a MemoryError too: its sign is a process that has swollen
        return {"equal": False}
