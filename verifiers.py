r"""Rule-based verifiers for math, science multiple choice, tool use and code: response and gold answer in, Verdict out.

Needs the standard library only; knows nothing of models, tokenizers or training. Its input is text from a model that is
optimised against it: no model text is evaluated outside the sandbox, scans are linear, every recursion and every
integer has a bound, and feedback is made from the response alone: the gold answer only decides whether there is any.

Math is compared by value. A recursive-descent parser for LaTeX and plain notation builds a tree; numbers are exact
fractions; variables, roots and functions are evaluated at random real points (one where neither side is real says
nothing, so that \sqrt{x^3} is x\sqrt{x}, and |x| is not x). Floats are equal within 1e-11; a long decimal never equals
an irrational number.

Programs run in children of a fork server, which is the last section of this file given to a clean interpreter. They get
inputs and give outputs; what is expected stays in this process, but for assertions, which a trusted child holds while
it calls the program's functions in another. On Linux the server enters new user, network, IPC, PID and mount namespaces
(its root is the interpreter, read-only, and one scratch folder), gives up all capabilities and restricts itself by
Landlock; each child adds its own session, limits and a seccomp filter (no processes, signals, sockets, tracing). Each
layer is used where the system allows; describe_isolation() names those that hold and those that are missing.

    verify("math", r"so it is \boxed{\frac12}", "0.5")       # Verdict(correct=True, answer='\\frac12', feedback='')
"""

import atexit
import cmath
import json
import marshal
import math
import os
import random
import re
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from types import SimpleNamespace

TASKS = ("math", "code", "science", "tool")
INSTRUCTIONS = {  # what the prompt asks for, beside the code that reads it
    "math": r"Reason step by step and put the final answer in \boxed{}.",
    "code": "Write the complete Python program or function in one fenced block: ```python ... ```.",
    "science": "Give your reasoning, then only the letter of the right option in answer tags: <answer>B</answer>.",
    "tool": "Write 'Thought: ' and what to do; then for each call a line 'Action: ' with the tool's name and a line "
            "'Action Input: ' with its arguments as one JSON object."}


@dataclass(frozen=True)
class Verdict:
    """`answer`: what was read from the response, or None. `feedback`: at most 2,000 characters, empty when correct."""
    correct: bool
    answer: str | None
    feedback: str


def verify(task, response, answer):
    """Verdict on any response text. ValueError for an unknown task or a gold `answer` of the wrong form only."""
    check_answer(task, answer)
    judges = {"math": verify_math, "science": verify_science, "tool": verify_tool, "code": verify_code}
    return judges[task](response, answer)


def check_answer(task, answer):
    """ValueError, saying what is wrong, unless `answer` has the form of a gold answer of this task."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    if task == "math" and not (isinstance(answer, str) and 0 < len(answer.strip()) <= MAX_ANSWER):
        raise ValueError(f"a math answer is a string of 1 to {MAX_ANSWER} characters, not {answer!r:.80}")
    if task == "math" and ("####" in answer or "\\boxed" in answer):
        raise ValueError(f"a math answer is the bare value, without #### or \\boxed, not {answer!r:.80}")
    if task == "science" and not (isinstance(answer, str) and re.fullmatch("[A-Za-z]", answer)):
        raise ValueError(f"a science answer is one letter, not {answer!r:.80}")
    if task in ("tool", "code"):
        (_gold_actions if task == "tool" else _check_code_answer)(answer)


def _visible(text):
    """Text outside <think>...</think>: a lone </think> hides all before it, an unclosed <think> all that follows."""
    shown, start, hidden = [], 0, False
    for tag in re.finditer("</?think>", text):
        if not hidden and tag[0] == "<think>":
            shown.append(text[start:tag.start()])
        elif not hidden:
            shown.clear()
        start, hidden = tag.end(), tag[0] == "<think>"
    return "".join(shown) + ("" if hidden else text[start:])


# --- math ---

MAX_ANSWER = 1_000    # characters of a final answer
MAX_DEPTH = 25        # nested brackets, each about ten Python frames
MAX_BITS = 20_000     # of any integer on the way: 2004! has 19,089
MAX_WORK = 4_000_000  # bits of all integers on the way, together
_UNITS = {word: line.split()[0] for line in (
    "mm", "cm centimeter centimeters", "m meter meters", "km kilometer kilometers", "in inch inches", "ft foot feet",
    "yd yard yards", "mi mile miles", "g gram grams", "kg kilogram kilograms", "lb lbs pound pounds", "oz ounce ounces",
    "sec s second seconds", "min minute minutes", "hr h hour hours", "day days", "week weeks", "month months",
    "year years", "usd dollar dollars", "cent cents", "euro euros", "ml", "mph", "am", "pm") for word in line.split()}
_NUMERALS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_TRIG = {"sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "sec": lambda z: 1 / cmath.cos(z),
         "csc": lambda z: 1 / cmath.sin(z), "cot": lambda z: 1 / cmath.tan(z)}
_FUNCTIONS = {**_TRIG, "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan, "sinh": cmath.sinh,
              "cosh": cmath.cosh, "tanh": cmath.tanh, "log": cmath.log10, "ln": cmath.log, "exp": cmath.exp, "abs": abs}
_SAME = dict(pair.split(":", 1) for pair in (
    r"dfrac:frac tfrac:frac cfrac:frac dbinom:binom tbinom:binom times:* cdot:* ast:* div:/ leq:≤ le:≤ leqslant:≤ "
    r"geq:≥ ge:≥ geqslant:≥ lt:< gt:> ne:≠ neq:≠ approx:≈ in:∈ cup:∪ pm:± mp:∓ lvert:| rvert:| vert:| langle:( "
    r"rangle:) lbrack:[ rbrack:] lbrace:\{ rbrace:\} infinity:infty inf:infty oo:infty varnothing:emptyset degree:° "
    r"degrees:° percent:% \%:% **:^ <=:≤ >=:≥ !=:≠ ;:,").split())
_SYMBOLS = {*r"frac binom sqrt \{ \} * / ≤ ≥ < > ≠ ≈ ∈ ∪ ± ∓ | ( ) [ ] ° %".split()}
_TEXT = "text|mbox|hbox|textbf|textit|textrm|textsf|textnormal|mathrm|mathsf|operatorname"
_IGNORED = {*"left right big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle quad qquad limits boxed".split(),
            *"fbox framebox mathbf mathit mathbb mathcal boldsymbol bm bf rm pounds euro".split(), *_TEXT.split("|")}
_UNICODE = {"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ",
            "²": "^2", "³": "^3", "½": r"\frac{1}{2}", **dict.fromkeys("\u00a0\u2009\u202f~", " "),
            **dict.fromkeys('$€£"', "")}


def _mixed(m):
    return f"({m[1]}+{m[2]}/{m[3]})" if int(m[2]) < int(m[3]) else m[0]


_REWRITES = [(re.compile(pattern), new) for pattern, new in (
    (r"\\\$", "¤"), ("[" + "".join(_UNICODE) + "]", lambda m: _UNICODE[m[0]]),
    (r"\^\s*\{?\s*(?:\\circ|\\degree|°)\s*\}?", "°"), (r"\\[hv]?phantom\s*(?:\{[^{}]*\}|.)", ""),
    (r"(?<=[A-Za-z]{2})\.(?=\s)", ""), (r"\b([aApP])\.\s?([mM])\b\.?", r"\1\2"),
    (r"\\begin\s*\{(?:[pb]?matrix|array\}\s*\{[^{}]*)\}", "⟦"),
    (r"(?:\\\\\s*)?\\end\s*\{(?:[pb]?matrix|array)\}", "⟧"),
    (r"(?<![\d.])\d{1,3}(?:(?:\{,\}|, ?\\! ?|\\[,;:! ] ?| |')\d{3})+(?!\d)", lambda m: re.sub(r"\D", "", m[0])),
    (r"(\\[dtc]?frac)\s*(\d)", r"\1{\2}"), (r"(\\[dtc]?frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"(?<![\d.^_a-zA-Z])(?<!sqrt )(\d+)\s*\\[dtc]?frac\s*\{(\d+)\}\s*\{(\d+)\}", _mixed),  # 2\frac{1}{3} is a sum
    (r"(?<![\d^_.])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)", _mixed),
    (r"\\(?:text|mathrm)\s*\{\s*([\dA-Z]*\d[\dA-Z]*)\s*\}\s*_", r"\1_"),  # digits of a base
    (rf"\\(?:{_TEXT})\s*\{{([^{{}}]*)\}}", lambda m: re.sub("[A-Za-z]+", r'"\g<0>"', f" {m[1]} ")))]
_JOINED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)(?![^()\[\]]*?(?:[)\]]|\\\}))")  # not inside (1,234)
_TOKEN = re.compile(r"""\s+|(?P<based>(?:\d[\dA-Z]*|[A-Z]+\d[\dA-Z]*)(?:\.[\dA-Z]+)?\s*_\s*(?:\{\s*\d\d?\s*\}|\d\d?))
    |(?P<num>\d+\.?\d*|\.\d+)|(?P<op>\\\\|\\[{}%]|\*\*|<=|>=|!=)|\\(?P<cmd>[a-zA-Z]+)|\\.
    |"(?P<text>[a-zA-Z]+)"|(?P<word>[A-Za-z]+'*)|(?P<sign>.)""", re.X | re.S)


class _Unreadable(Exception):
    """Text outside the grammar or beyond a bound: equal to nothing but the same text."""


def _tokenize(text, join):
    """List of (kind, value), kind one of num, var, word, fn, op. `join`: 1,234 is one number."""
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    text = _JOINED.sub(lambda m: m[0].replace(",", ""), text) if join else text
    tokens = []
    for m in _TOKEN.finditer(text):
        kind, value = m.lastgroup, m[m.lastgroup or 0]
        if kind == "based":
            (whole, _, part), base = (s := re.sub(r"[\s{}]", "", value).split("_"))[0].partition("."), int(s[1])
            if not 2 <= base <= 36 or max(int(c, 36) for c in whole + part) >= base:
                raise _Unreadable("a digit does not fit the base")
            tokens.append(("num", Fraction(int(whole + part, base), base ** len(part))))
        elif kind == "num":
            tokens.append(("num", Fraction(value)))
        elif kind in ("cmd", "text", "word"):
            tokens += _name_tokens(value, kind)
        elif kind:
            tokens.append(("op", _SAME.get(value, value)))
    tokens = [t for before, t in zip([None, *tokens], tokens) if not before == t == ("op", ",")]  # "2, 3, and 4"
    while tokens and tokens[-1] in (("op", "."), ("op", ","), ("op", ":")):
        tokens.pop()
    return tokens


def _name_tokens(run, kind):
    """Tokens of a command (an unknown one is a variable) or of a run of letters: outside \\text, up to three letters
    that are no unit are one variable each."""
    lower, name = run.lower(), _SAME.get(run, run)
    if kind == "cmd" and name in _IGNORED:
        return []
    if kind != "cmd" and lower in ("and", "or"):
        return [("op", ",")]
    if name in ("°", "%") or (name in _SYMBOLS and (kind == "cmd" or kind == "word" and len(run) > 2)):
        return [("op", name)]
    if kind != "text" and (name in _FUNCTIONS or name in ("pi", "infty") or kind == "cmd"):
        return [("fn" if name in _FUNCTIONS else "var", name)]
    if lower in _SCALES:
        return [("num", Fraction(_SCALES[lower]))]
    if kind == "text" or len(run) > 3 or (len(run) > 1 and lower in _UNITS):
        return [("word", lower if len(run) > 1 else run)]
    return [("var", letter) for letter in re.findall("[A-Za-z]'*", run)]


_MINUS_ONE = ("num", Fraction(-1))
_LEVELS = (("list", ","), ("rows", r"\\"), ("cells", "&"), ("rel", "=≈<>≤≥≠∈:"), ("union", "∪"), ("+", "+-"))
_CLOSERS = {"(": ")]", "[": ")]", "{": "}", r"\{": (r"\}",), "|": "|", "⟦": "⟧"}
_FACTORS = {*_CLOSERS, "frac", "binom", "sqrt"}


class _Parser:
    """Recursive descent; every recursion passes `atom`, which counts it. Levels run from loose to tight.
    Trees: (num, q), (var, name), (words, text), (one of _LEVELS, signs, parts), (*, factors), (inv, x), (^, x, y),
    (!, x), (°, x), (%, x), (binom, n, k), (call, name, x), (set, items), (seq, brackets, items)."""

    def __init__(self, tokens):
        self.tokens, self.at, self.depth, self.in_bars, self.units = tokens, 0, 0, False, set()

    def peek(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self, *signs):
        kind, value = self.peek()
        self.at += (found := kind == "op" and value in signs)
        return value if found else None

    def level(self, n=0):
        if n == len(_LEVELS):
            return self.product()
        name, separators = _LEVELS[n]
        parts, signs = [self.level(n + 1)], ""
        while sign := self.take(separators) if name == "rows" else self.take(*separators):
            signs += sign
            parts.append(self.level(n + 1))
        return (name, signs, tuple(parts)) if signs else parts[0]

    def signed(self, read):
        negative = False
        while sign := self.take("+", "-"):
            negative ^= sign == "-"
        return ("*", (_MINUS_ONE, read())) if negative else read()

    def product(self):
        factors = [self.signed(self.power)]
        while True:
            kind, value = self.peek()
            if sign := self.take("*", "/"):
                if self.peek()[0] != "word":  # m/s
                    factors.append(self.signed(self.power) if sign == "*" else ("inv", self.signed(self.power)))
            elif kind == "word":  # a unit after a value: 5 cm^2
                self.units |= {_UNITS[value]} if value in _UNITS else set()
                self.at += 1
                self.take("^") and self.atom()
            elif kind in ("num", "var", "fn") or value in _FACTORS and not (value == "|" and self.in_bars):
                if kind == self.tokens[self.at - 1][0] == "num" and value not in _SCALES.values():
                    raise _Unreadable("two numbers side by side")
                factors.append(self.power())
            else:
                return ("*", tuple(factors)) if len(factors) > 1 else factors[0]

    def power(self):
        tree = self.atom()
        while sign := self.take("^", "!", "°", "%"):
            if sign == tree[0]:  # x^2^3, and chains without end
                raise _Unreadable("a sign twice")
            tree = (sign, tree, self.signed(self.atom)) if sign == "^" else (sign, tree)
        return tree

    def atom(self):
        kind, value = self.peek()
        self.at, self.depth = self.at + 1, self.depth + 1
        if self.depth > MAX_DEPTH:
            raise _Unreadable("too deep")
        if kind == "num":
            tree = (kind, value)
        elif kind == "var":
            tree = (kind, f"{value}_{self.atom()}" if self.take("_") else value)
        elif kind == "word":
            while self.peek()[0] in ("word", "num"):
                value, self.at = f"{value} {self.peek()[1]}", self.at + 1
            tree = ("words" if len(value) > 1 else "var", value)
            if value in _NUMERALS:
                tree = ("num", Fraction(_NUMERALS.index(value)))
        elif kind == "fn":
            tree = self.call(value)
        elif value in _CLOSERS:
            tree = self.group(value)
        elif value == "sqrt":
            root = self.group("[") if self.take("[") else ("num", Fraction(2))
            tree = ("^", self.atom(), ("inv", root))
        elif value in ("frac", "binom"):
            above, below = self.atom(), self.atom()
            tree = ("*", (above, ("inv", below))) if value == "frac" else ("binom", above, below)
        else:
            raise _Unreadable(f"unexpected {value or 'end'}")
        self.depth -= 1
        return tree

    def group(self, opener):
        outer, self.in_bars = self.in_bars, opener == "|"
        tree, closer = self.level(), self.take(*_CLOSERS[opener])
        self.in_bars, items = outer, tree[2] if tree[0] == "list" else (tree,)
        if closer is None:
            raise _Unreadable("a bracket is not closed")
        if opener == r"\{" or (opener == "{" and len(items) > 1):
            return ("set", items)
        if opener + closer in ("()", "[]", "{}", "||") and len(items) == 1:
            return ("call", "abs", tree) if opener == "|" else tree
        return ("seq", opener + closer, items)

    def call(self, name):
        """sin x, sin^2 x, log_2 x, sin(x): a bare argument ends at a sign, a word or the next function."""
        base, power = (self.signed(self.atom) if self.take(sign) else None for sign in "_^")
        bracketed = self.peek() in (("op", "("), ("op", "["), ("op", "{"))
        factors = [self.atom() if bracketed else self.signed(self.power)]
        while not bracketed and (self.peek()[0] in ("num", "var") or self.peek() in (("op", "frac"), ("op", "sqrt"))):
            factors.append(self.power())
        if power == ("*", (_MINUS_ONE, ("num", 1))) and "arc" + name in _FUNCTIONS:
            name, power = "arc" + name, None
        tree = ("call", name, ("*", tuple(factors)))
        tree = tree if base is None else ("*", (("call", "ln", tree[2]), ("inv", ("call", "ln", base))))
        return tree if power is None else ("^", tree, power)


@lru_cache(maxsize=4096)
def _read(text, join):
    """Readings (tokens, tree or None, units) of an answer: as it stands; of `(B) 5` also 5 and B."""
    try:
        tokens = _tokenize(text, join)
    except _Unreadable:
        return ()
    values = [str(value) for _, value in tokens[:3]] + ["", "", ""]
    skip = 3 if values[0] + values[2] == "()" else 2 if values[1] in tuple(".):") else 0
    readings = [tokens]
    marked = skip and len(tokens) > skip and re.fullmatch("[A-J]", values[skip - 2])
    if marked and tokens[skip][1] not in tuple("=+*/^_!,<>∪"):
        readings += [tokens[skip:], [("var", values[skip - 2])]]
    return tuple((reading, *_parse(reading)) for reading in readings)


def _parse(tokens):
    """(tree or None, units). a ± b is read twice, with either sign, and is the list a + b, a - b."""
    shown = [t for t in tokens if t != ("op", "¤")]
    shown, units, trees = shown[shown[:1] == [("op", "≈")]:], {"usd"} if len(shown) < len(tokens) else set(), []
    for signs in ("+-", "-+"):
        parser = _Parser([(kind, dict(zip("±∓", signs)).get(value, value)) for kind, value in shown])
        try:
            tree = parser.level()
        except _Unreadable:
            return None, units
        trees.append(tree if tree[0] in ("list", "set") else ("list", ",", (tree,)))
        units |= parser.units
    if parser.peek()[0] != "end":
        return None, units
    items = tuple(item for pair in zip(trees[0][-1], trees[1][-1]) for item in dict.fromkeys(pair))
    return ("set", items) if trees[0][0] == "set" else items[0] if len(items) == 1 else ("list", ",", items), units


class _Point(dict):
    """Values of the constants, and of each variable a random one on first use; counts the work of the arithmetic."""

    def __init__(self, seed, signs, work):
        super().__init__({"pi": math.pi, "e": math.e, "i": 1j}, **signs)
        self.seed, self.work, self.free = seed, work, False

    def __missing__(self, name):
        rng, self.free = random.Random(f"{self.seed} {name}"), True
        self[name] = Fraction(rng.randint(500, 6000), 997) * (1 if self.seed < 6 else rng.choice((-1, 1)))
        return self[name]

    def bounded(self, value):
        bits = value.numerator.bit_length() + value.denominator.bit_length() if isinstance(value, Fraction) else 1
        self.work[0] -= bits + 50
        if bits > 2 * MAX_BITS or self.work[0] < 0:
            raise _Unreadable("too large")
        return value


def _value(tree, point):
    """Value of an expression at a point: a Fraction where it is rational there, else a float or complex."""
    kind, *parts = tree
    if kind in ("num", "var"):
        return point.bounded(parts[0] if kind == "num" else point[parts[0]])
    if kind in ("+", "*"):
        total = Fraction(kind == "*")
        for sign, part in zip("+" + parts[0] if kind == "+" else "*" * len(parts[0]), parts[-1]):
            value = _value(part, point)
            total = point.bounded(total * value if sign == "*" else total + value if sign == "+" else total - value)
        return total
    if kind == "call":
        outer = point["°"]
        point["°"] = math.pi / 180 if parts[0] in _TRIG else outer  # inside sin an angle in degrees is always one
        value, point["°"] = _value(parts[1], point), outer
        return abs(value) if parts[0] == "abs" else _FUNCTIONS[parts[0]](complex(value))
    if kind not in ("inv", "^", "!", "°", "%", "binom"):
        raise _Unreadable(f"{kind} inside an expression")
    values = [_value(part, point) for part in parts]
    if kind in ("^", "inv"):
        return point.bounded(_power(*values) if kind == "^" else 1 / values[0])
    if kind in ("°", "%"):
        return point.bounded(values[0] * point[kind])
    most = 2200 if kind == "!" else MAX_BITS
    if any(not isinstance(v, Fraction) or v.denominator > 1 or not 0 <= v <= most for v in values):
        raise _Unreadable("factorial of what is no small whole number")
    return point.bounded(Fraction((math.factorial if kind == "!" else math.comb)(*map(int, values))))


def _power(base, exponent):
    fraction, whole = isinstance(exponent, Fraction), getattr(exponent, "denominator", 0) == 1
    if isinstance(base, Fraction) and fraction and (whole or exponent.denominator == 2 and base >= 0):
        if base == 0 and exponent <= 0:
            raise ZeroDivisionError
        bits = max(part.bit_length() for part in base.as_integer_ratio())
        if abs(base) != 1 and abs(exponent) * bits > MAX_BITS:
            raise _Unreadable("too large")
        root = base if whole else Fraction(*map(math.isqrt, base.as_integer_ratio()))
        if whole or root * root == base:
            return root ** (exponent.numerator if abs(base) != 1 else exponent.numerator % 2)
    real = None if complex(base).imag else complex(base).real
    if real is None or isinstance(exponent, complex) or real < 0 and not (fraction and exponent.denominator % 2):
        value = complex(base) ** complex(exponent)
    elif real < 0 and not whole:                              # the real cube root: that of -8 is -2
        value = (-1) ** exponent.numerator * (-real) ** float(exponent)
    else:
        value = real ** float(exponent)
    if value == 0 and base != 0:
        raise OverflowError("underflow")
    return value


def _is_name(tree):
    """x, f(2), AB, (x, y), words: what may stand before "=" as the name of a value."""
    if tree[0] in ("*", "seq"):
        return _is_name(tree[-1][0]) and all(_is_name(part) or part[0] == "num" for part in tree[-1])
    return tree[0] in ("var", "words")


def _sides(tree):
    """Values that a chain `x = a = b` gives for x; () for another relation. What follows ≈ is dropped."""
    _, signs, parts = tree
    start = int(_is_name(parts[0]))
    end = signs.find("≈", start) + 1
    return () if set(signs) - set("=≈∈") else parts[start:end or None]


@dataclass
class _Comparison:
    """Equality of trees. `signs`: what ° and % count for; `has_i`: complex values are meant; `work`: what is left."""
    signs: dict
    has_i: bool
    work: list

    def agree(self, left, right, ratio=False):
        """Equal at each random point where both exist; with `ratio`, with the same quotient, other than 0, at each."""
        agreed, first = 0, None
        for seed in range(14):
            point = _Point(seed, self.signs, self.work)
            try:
                a, b = _value(left, point), _value(right, point)
                first = first or (a, b)
                if ratio:
                    if not all(first):
                        return False
                    a, b = a * first[1], b * first[0]
                exact = [isinstance(v, Fraction) for v in (a, b)]
                if all(exact):
                    same = a == b
                else:
                    long = not point.free and any(isinstance(v, Fraction) and v.denominator > 10**5 for v in (a, b))
                    a, b = complex(a), complex(b)
                    same = not long and abs(a - b) <= max(1e-13, (1e-9 if point.free else 1e-11) * max(abs(a), abs(b)))
            except (ZeroDivisionError, OverflowError, ValueError):
                same = None  # outside the domain of one of them
            if same is False and (self.has_i or any(exact) or any(abs(v.imag) <= 1e-12 * abs(v) for v in (a, b))):
                return False
            agreed += same is True
            if not point.free:
                return same is True
        return agreed >= 3

    def equal(self, left, right):
        if left == right:
            return True
        kinds = {left[0], right[0]}
        if kinds == {"rel"}:
            return self.equal_relations(left, right)
        if "rel" in kinds:
            relation, other = (left, right) if left[0] == "rel" else (right, left)
            return bool(sides := _sides(relation)) and all(self.equal(side, other) for side in sides)
        if kinds == {"set"}:                                  # repeats do not count
            ways = (left[1], right[1]), (right[1], left[1])
            return all(any(self.equal(a, b) for b in ys) for xs, ys in ways for a in xs)
        if kinds <= {"list", "set"} or kinds == {"union"}:
            return self.equal_in_any_order(left[-1], right[-1])
        if len(kinds) == 1 and kinds <= {"seq", "rows", "cells"}:
            return left[1] == right[1] and self.equal_all(left[2], right[2])
        return not kinds & {"list", "set", "union", "seq", "rows", "cells", "words"} and self.agree(left, right)

    def equal_all(self, left, right):
        return len(left) == len(right) and all(map(self.equal, left, right))

    def equal_in_any_order(self, left, right):
        rest = list(right)
        for a in left:
            match = next((k for k, b in enumerate(rest) if self.equal(a, b)), None)
            if match is None:
                return False
            rest.pop(match)
        return not rest

    def equal_relations(self, left, right):
        """Part by part, in either direction; as equations whose differences vanish together; as values of one name."""
        turned = ("rel", left[1][::-1].translate(str.maketrans("<>≤≥", "><≥≤")), left[2][::-1])
        either = (left, turned)[:1 + (":" not in left[1])]
        if any(tree[1] == right[1] and self.equal_all(tree[2], right[2]) for tree in either):
            return True
        if left[1] == right[1] == "=":
            return self.agree(*(("+", "-", tree[2]) for tree in (left, right)), ratio=True)
        sides = _sides(left), _sides(right)
        return left[2][0] == right[2][0] and all(sides) and all(self.equal(a, b) for a in sides[0] for b in sides[1])


def _same_answer(response, gold):
    """Are two texts the same answer? Percent and degrees count as 1 on both sides, or as 1/100 and pi/180 on both."""
    work = [MAX_WORK]
    for join in (True, False)[:1 + ("," in response + gold)]:
        for tokens, tree, units in _read(response, join):
            for gold_tokens, gold_tree, gold_units in _read(gold, join)[:1]:
                if tokens == gold_tokens:
                    return True
                if None in (tree, gold_tree) or (units and gold_units and units != gold_units):
                    continue
                both, readings = tokens + gold_tokens, [{"°": Fraction(1), "%": Fraction(1)}]
                if ("op", "°") in both or ("op", "%") in both:
                    readings.append({"°": math.pi / 180, "%": Fraction(1, 100)})
                for signs in readings:
                    try:
                        if _Comparison(signs, ("var", "i") in both, work).equal(tree, gold_tree):
                            return True
                    except _Unreadable:
                        pass  # beyond a bound: not equal in this reading
    return response.strip() == gold.strip()


def _final_answer(text):
    """(answer, None) or (None, what is missing): the last complete \\boxed, else a closing "answer is" or "####"."""
    braces, box = [], None  # of each open brace: where its box began, or None
    for m in re.finditer(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*(\{|(?:[^\s{}$]|\{[^{}]*\})+)|\\.|[{}]", text, re.S):
        if m[1] == "{" or m[0] == "{":
            braces.append(m.end() if m[1] else None)
        elif m[1]:
            box = m[1]
        elif m[0] == "}" and braces and (start := braces.pop()) is not None:
            box = text[start:m.start()]
    if box is not None:
        return (box.strip(), None) if box.strip() else (None, "The answer box is empty.")
    if any(braces):
        return None, r"The \boxed{ is never closed: the response is cut off or a brace is missing."
    marks = list(re.finditer(r"#{4,}|\banswers?\b[*_]*\s*(?:is|are|:|=)", text, re.I))
    value = text[marks[-1].end():].strip(" \t\r\n:=*_`") if marks else ""
    if not value or "\n" in value.strip("$\\[]() \n"):
        return None, r"No final answer was found: it has to stand in \boxed{}."
    return re.split(r"\.\s+(?=[A-Z])", value)[0].strip(" *_`\n"), None


def verify_math(response, answer):
    """`answer`: the gold value as text, in LaTeX or plain notation."""
    check_answer("math", answer)
    found, problem = _final_answer(_visible(response))
    if found is None:
        return Verdict(False, None, problem)
    if len(found) > MAX_ANSWER:
        return Verdict(False, found[:200], f"The final answer is too long: more than {MAX_ANSWER} characters.")
    if _same_answer(found, answer):
        return Verdict(True, found, "")
    readable = any(tree is not None for _, tree, _ in _read(found, True))
    fault = "is wrong" if readable else "could not be read as a value"
    return Verdict(False, found, f"The final answer {fault}: {found[:200]}")


# --- science ---

_OPTION = r"[(\[]?\b([A-Za-z])\b[)\]]?"
_MORE = rf"\s*(?:[,;/&|+]|and\b|or\b)[\s,]*(?:or\s+|and\s+|option\s+)?{_OPTION}"


def _options(text):
    """The letters that a short text chooses: B, (B), B., b, B: text, B because; not the article "a"."""
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|boxed|fbox)\b|\\[()\[\]]|[*_$`{}]", "", text[:5_000]).strip()
    text = re.sub(r"^(?:the )?(?:correct )?(?:option|choice|answer)(?: is)?:?\s+", "", text, flags=re.I)
    m = re.match(rf"{_OPTION}(?=\W*$)|[(\[]([A-Za-z])[)\]]|([A-Za-z])(?={_MORE})|([A-Za-z])(?=[.:),])|([B-HJ-Z])\b|"
                 r"([A-Z])(?=[\s,]+[A-Z]\W*$)", text)
    if not m:
        return set()
    rest = text[m.end():]
    others = re.findall(r"^\s*[(\[]?([A-Z])[)\].:]\s", rest, re.M)  # a second option's line
    letters = [next(filter(None, m.groups())), *others]
    while more := re.match(_MORE, rest) or re.match(r"[\s,]+()[(\[]?([A-Z])[)\]]?(?=\W*$)", rest):
        letters.append(more[more.lastindex])
        rest = rest[more.end():]
    return {letter.upper() for letter in letters}


def verify_science(response, answer):
    """`answer`: the right letter. Read from the last <answer>, else the last \\boxed, else "answer is (B)"."""
    check_answer("science", answer)
    text = _visible(response)
    tags = re.findall(r"<answer>([^<]*(?:<(?!/?answer>)[^<]*)*)</answer>", text, re.I)
    boxed = _final_answer(text)[0] if re.search(r"\\(?:boxed|fbox)", text) else None
    said = re.findall(r"\banswer\W{0,5}(?:is\b|:)[ \t:*$]*"
                      r"(?=((?:option )?(?:[A-Z]\b|[(\[][A-Za-z][)\]]).{0,300}))", text)
    letters = _options(tags[-1] if tags else boxed if boxed else said[-1] if said else "")
    if not letters:
        return Verdict(False, None, "No option was chosen: its letter alone has to stand in <answer> tags.")
    if len(letters) > 1:
        return Verdict(False, None, "More than one option was chosen.")
    letter = letters.pop()
    correct = letter == answer.upper()
    return Verdict(correct, letter, "" if correct else f"The chosen option, {letter}, is wrong.")


# --- tool ---

def _json_object(pairs):
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _json_number(text):
    if len(text) > 400 or not math.isfinite(float(text)):
        raise ValueError("a number is out of range")
    return Fraction(repr(float(text)) if "e" in text.lower() else text)         # exact 1e-999999999 is huge


_JSON = json.JSONDecoder(object_pairs_hook=_json_object,
                         **dict.fromkeys(("parse_constant", "parse_float", "parse_int"), _json_number))
_LABEL = re.compile(r"^[ \t]*(?:Action:(.*)|Action Input:\s*(?:```(?:json)?\s*)?)", re.M)


def _read_actions(text):
    """[(name, arguments), ...]; ValueError saying what is wrong with the form. Labels count at the start of a line,
    not inside a JSON value."""
    actions, name, at = [], None, 0
    while label := _LABEL.search(text, at):
        at = label.end()
        if label[1] is not None:
            if name:
                raise ValueError("An Action has no Action Input of its own.")
            name = label[1].strip()
            continue
        if not name:
            raise ValueError("An Action Input has no Action with a name before it.")
        try:
            arguments, at = _JSON.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"The Action Input of {name[:200]} is not valid JSON: {str(error)[:200]}") from None
        if not isinstance(arguments, dict):
            raise ValueError(f"The Action Input of {name[:200]} is not a JSON object.")
        actions.append((name, arguments))
        name = None
    if name or not actions:
        raise ValueError("The last Action has no Action Input: it is missing or cut off." if name else
                         "No action was found: it needs a line 'Action: ' and a line 'Action Input: '.")
    return actions


def _same_json(left, right):
    """Equal as JSON, where a string that is a number's text equals that number; true is not 1."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same_json(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same_json, left, right))
    if {type(left), type(right)} == {str, Fraction}:
        text, number = (left, right) if isinstance(left, str) else (right, left)
        return bool(re.fullmatch(r"-?(?:0|[1-9]\d{0,39})(?:\.\d{1,40})?", text, re.A)) and Fraction(text) == number
    return type(left) is type(right) and left == right


def _gold_actions(answer):
    try:
        actions = [(item["Action"].strip(), _JSON.decode(item["Action_Input"])) for item in answer]
        if not actions or not all(name and isinstance(arguments, dict) for name, arguments in actions):
            raise ValueError("an empty list, an empty name, or an input that is no object")
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
        shape = """[{"Action": "name", "Action_Input": "{\\"argument\\": 1}"}], a JSON object as text in each"""
        detail = f": {error}" if isinstance(error, ValueError) else ""
        raise ValueError(f"a tool answer is a list like {shape}{detail:.200}") from None
    return actions


def verify_tool(response, answer):
    """`answer`: the actions in order, each {"Action": name, "Action_Input": JSON object as a string}."""
    gold = _gold_actions(answer)
    try:
        actions = _read_actions(_visible(response))
    except ValueError as error:
        return Verdict(False, None, str(error))
    correct = len(actions) == len(gold) and all(a == b and _same_json(x, y) for (a, x), (b, y) in zip(actions, gold))
    shown = "; ".join(name for name, _ in actions)[:200]
    wrong = "The actions are well formed, but their tools, inputs, number or order are wrong."
    return Verdict(correct, shown, "" if correct else wrong)


# --- code ---
#
#   trainer ──asks──> fork server ──fork──> sandbox: the model's program; never sees an expected output
#      │                         └──fork──> judge: assertion tests only; trusted, calls the functions of the sandbox
#      └─ sends each its work, reads what it writes, compares; holds a status socket for each (end of file: kill it)
#
# The fork server is the last section of this file given to a new interpreter: it has none of the trainer's memory,
# locks or descriptors. Programs and tests go straight to the process that needs them, in unnamed files: the server,
# whose memory every sandbox inherits, never reads one.

MAX_PROGRAM, MAX_OUTPUT, MAX_FEEDBACK = 1 << 20, 8 << 20, 2000     # characters, bytes, characters
_LOST = "the sandbox was killed from outside."
_server, _lock = None, threading.Lock()


def verify_code(response, answer, *, time_limit=2.0, memory_mb=1024):
    """Run the last program of `response` on the tests in order, up to the first that fails.

    answer: {"type": "stdin", "tests": [{"input", "output"}]}, {"type": "functional", "entry_point", "tests": the same
    with JSON lines in and JSON out} or {"type": "assert", "tests": [source], "entry_point", "setup"?}. time_limit: CPU
    seconds a test; memory_mb: MiB of address space. ValueError: a bad answer; RuntimeError: no sandbox can start."""
    _check_code_answer(answer)
    program, fenced = _find_program(response)
    if not program.strip() or len(program) > MAX_PROGRAM:
        return Verdict(False, None, f"No program of at most {MAX_PROGRAM} characters was found in a ```python block.")
    for number, test in enumerate(answer["tests"], 1):
        problem = _run_test(program, answer, test, time_limit, memory_mb)
        if problem.startswith(_LOST):                         # a new server, once
            time.sleep(0.1)                                   # until the system has cleared a killed one away
            problem = _run_test(program, answer, test, time_limit, memory_mb)
        if problem and not fenced and "SyntaxError" in problem:
            return Verdict(False, None, "No program was found: no fenced block, and the text is not a program.")
        if problem:
            return Verdict(False, program, f"Test {number} failed: {problem}"[:MAX_FEEDBACK])
    return Verdict(True, program, "")


def verify_batch(task, responses, answers, *, workers=None):
    """Verdicts of equally long lists, in order. Programs run `workers` at a time (by default and at most one a core),
    equal (response, answer) pairs once; the other tasks are a plain loop."""
    pairs = list(zip(responses, answers, strict=True))
    for _, answer in pairs:
        check_answer(task, answer)
    if task != "code":
        return [verify(task, *pair) for pair in pairs]
    keys = [(response, json.dumps(answer, sort_keys=True)) for response, answer in pairs]
    pool = ThreadPoolExecutor(max(1, min(workers or _cores(), _cores())))
    try:
        jobs = {key: pool.submit(verify_code, *pair) for key, pair in dict(zip(keys, pairs)).items()}
        return [jobs[key].result() for key in keys]
    finally:
        pool.shutdown(cancel_futures=True)                    # `with` would run all that is queued, after a Ctrl-C too


def describe_isolation():
    """One line for the log: the layers of isolation that model programs run under here, and those that are missing."""
    return _connect().layers if hasattr(os, "fork") else "code verification is not available here: it needs os.fork"


def _find_program(text):
    """(program, fenced): the last complete block marked python, else the last block, else all the text."""
    blocks, fence, lines, text = [], None, [], _visible(text)
    for line in text.splitlines(keepends=True):
        mark = re.match(r"([ \t]*)(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$", line) if len(line) < 200 else None
        if fence is None and mark:
            fence, lines = mark, []
        elif fence and mark and mark[2].startswith(fence[2]) and not mark[3]:
            blocks.append((fence[3].lower() in ("python", "python3", "py"), len(blocks), "".join(lines)))
            fence = None
        elif fence:                                           # a block in a list is indented with its fence
            lines.append(line.removeprefix(fence[1]))
    if fence and not blocks:
        blocks = [(True, 0, "".join(lines))]
    return max(blocks)[2] if blocks else text, bool(blocks)


_TESTS = {"stdin": 'an object like {"input": "1 2\\n", "output": "3\\n"}', "assert": "a text like assert f(1, 2) == 3",
          "functional": 'an object like {"input": "1\\n2", "output": "3"}: a line of JSON for each argument, and the result'}


def _check_code_answer(answer):
    kind = answer.get("type") if isinstance(answer, dict) else None
    if kind not in ("stdin", "functional", "assert") or not (isinstance(answer.get("tests"), list) and answer["tests"]):
        raise ValueError("a code answer has a 'type' (stdin, functional or assert) and a non-empty list of 'tests'")
    if kind != "stdin" and not (isinstance(answer.get("entry_point"), str) and answer["entry_point"].isidentifier()):
        raise ValueError(f"{kind} tests need 'entry_point', the name of the function to call")
    for number, test in enumerate(answer["tests"], 1):
        try:
            if kind == "assert":
                compile(answer.get("setup", "") + "\n" + test, "<test>", "exec")
            elif (texts := [*(test["input"] + "").splitlines(), test["output"] + ""]) and kind == "functional":
                list(map(json.loads, texts))
        except (TypeError, KeyError):
            raise ValueError(f"test {number} is not a {kind} test, which is {_TESTS[kind]}") from None
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"test {number} is not a {kind} test: {error!r:.200}") from None


def _run_test(program, answer, test, time_limit, memory_mb):
    """What went wrong, in words that do not depend on the expected output; "" where nothing did."""
    kind, jobs, shown = answer["type"], [(b"f", {"source": program}, b"")], ""
    if kind == "stdin":
        jobs = [(b"s", {"source": program}, test["input"].encode("utf-8", "surrogatepass"))]
    elif kind == "functional":
        args = [json.loads(line) for line in test["input"].splitlines()]
        jobs[0][1]["call"] = [answer["entry_point"], _pack(args), {"dict": []}]
    else:
        test = {"input": "", "source": answer.get("setup", "") + "\n" + test, "entry": answer["entry_point"]}
        jobs.append((b"j", test, b""))
    problem, reply, out, err = _execute(jobs, time_limit, memory_mb)
    try:                                                      # written by the sandbox: any nonsense is possible
        shown, reply = _show("Input", test["input"]), json.loads(reply or b"{}")
        if kind == "stdin":
            problem = problem or not _same_output(out, test["output"]) and "wrong output."
            shown += _show("Output", out)
        elif kind == "functional":
            value = _unpack(reply["value"])
            problem = problem or not _same_value(value, json.loads(test["output"])) and "wrong value."
            shown += _show("Returned", repr(value))
        else:                                                 # by the judge
            problem = problem or not reply["ok"] and "the assertion does not hold."
            shown = _show("Call", reply.get("call", "")) + _show("Returned", reply.get("value", ""))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):    # of such nonsense
        problem = problem or "the function returned nothing that can be read."
    return problem and problem + shown + _show("Errors", err, tail=True) or ""


def _show(title, text, *, tail=False, limit=500):
    text = text.strip()
    if len(text) > limit:
        text = "…" + text[-limit:] if tail else text[:limit] + "…"
    return f"\n{title}:\n{text}" if text else ""


def _same_output(printed, expected):
    a, b = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (printed, expected))
    split = re.compile(r"\s+|\S+").findall
    return len(a) == len(b) and all(x == y or len(s := split(x)) == len(t := split(y)) and all(map(_same_token, s, t))
                                    for x, y in zip(a, b))


def _same_token(a, b):
    """Equal texts, or numbers within 1e-6 not both of which are whole: 10000001 is not 10000002, and 001 is not 1."""
    number, whole = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", r"[+-]?\d+"
    if a == b or len(a) > 400 or not (re.fullmatch(number, a) and re.fullmatch(number, b)):
        return a == b
    if re.fullmatch(whole, b):
        return not re.fullmatch(whole, a) and len(b) < 16 and abs(float(a) - int(b)) <= 1e-6
    return math.isclose(float(a), float(b), rel_tol=1e-6, abs_tol=1e-6)


def _same_value(a, b):
    if isinstance(a, (list, tuple)) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same_value, a, b))
    if type(a) is type(b) is dict:
        return a.keys() == b.keys() and all(_same_value(a[key], b[key]) for key in b)
    if float in (type(a), type(b)) and {type(a), type(b)} <= {int, float}:
        return a == b or math.isclose(a, b, rel_tol=0 if type(b) is int else 1e-6, abs_tol=1e-6)
    return type(a) is type(b) and a == b                      # true is not 1


def _execute(jobs, time_limit, memory_mb):
    """Run the program's job and, where there is one, its judge's: (what went wrong or "", reply, output, errors)."""
    runs, problem, reply, lost = [], "", bytearray(), False
    try:
        for job in jobs:
            runs.append(_start(*job, runs[0].pop("channel") if runs else None, time_limit, memory_mb))
        problem = _watch(runs[-1], reply, time_limit)
    except OSError:                                           # the server or its child is gone
        lost = True
    for run in reversed(runs):                                # has the server kill what still runs and clean up
        try:
            run["status"].settimeout(10)
            run["status"].shutdown(socket.SHUT_WR)
            code, cpu = _STATUS.unpack(run["status"].recv(_STATUS.size))
        except (OSError, struct.error):
            lost = True
        out, err = (os.pread(run[name].fileno(), MAX_OUTPUT + 1, 0) for name in ("out", "err"))
        for file in run.values():
            file.close()
    if lost:
        return _LOST, b"", "", ""
    if max(len(out), len(err)) > MAX_OUTPUT:
        problem = f"more than {MAX_OUTPUT >> 20} MiB of output."
    elif not problem and cpu > time_limit * 0.99:
        problem = f"time limit of {time_limit:g} s exceeded."
    elif not problem and code and (len(jobs) == 1 or b'"lost": true' in reply):            # else it outlived its judge
        problem = f"the program ended with {f'signal {code & 127}' if code & 127 else f'exit code {code >> 8}'}."
    problem = "memory limit exceeded." if problem and b"MemoryError" in err[-999:] else problem
    return problem, reply, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


def _start(kind, request, stdin, peer, time_limit, memory_mb):
    """Have the server fork a process: {"status" socket, "out" and "err" files, "channel" for what a call returns}."""
    (status, far), message = socket.socketpair(), marshal.dumps(request)
    run = {"status": status, "out": _memory_file(), "err": _memory_file()}
    given = [far, _memory_file(message)]
    if kind == b"s":
        given.append(_memory_file(stdin))
    else:
        run["channel"], channel = socket.socketpair()
        given += [channel, peer] if peer else [channel]
    fds = [file.fileno() for file in (far, run["out"], run["err"], *given[1:])]
    try:
        server = _connect()
        with _lock:
            socket.send_fds(server.socket, [_ASK.pack(kind, len(message), time_limit, memory_mb)], fds)
    except BaseException:
        given += run.values()
        raise
    finally:
        for file in given:
            file.close()
    return run


def _memory_file(data=b""):
    file = open(os.memfd_create("sandbox"), "w+b", 0) if _LINUX else tempfile.TemporaryFile(buffering=0)
    file.write(data)
    file.seek(0)
    return file


def _watch(run, reply, time_limit):
    """Add to `reply` what comes through the channel until the process has ended, or must be: "" or the reason."""
    elapsed, start, ended, poll, channel = 0.0, time.monotonic(), False, select.poll(), run.get("channel")
    for file in filter(None, (run["status"], channel)):
        poll.register(file, select.POLLIN)
    while (ready := poll.poll(0 if ended else 100)) or not ended:
        for fd, _ in ready:
            data = channel.recv(1 << 16) if channel and fd == channel.fileno() else b""
            ended |= fd == run["status"].fileno()
            reply += data
            if not data:
                poll.unregister(fd)
        if len(reply) > MAX_OUTPUT:
            return f"more than {MAX_OUTPUT >> 20} MiB of output."
        if (now := time.monotonic()) - start > 0.05:          # the seconds of a busy machine count less
            start, elapsed = now, elapsed + (now - start) / _load()
        if elapsed > 1.5 * time_limit + 0.5 and not ended:
            return f"time limit of {time_limit:g} s exceeded (waiting or sleeping)."
    return ""


def _load():
    try:
        with open("/proc/loadavg") as file:
            return max(1.0, (int(file.read().split()[3].split("/")[0]) - 1) / _cores())  # running now, but for us
    except (OSError, ValueError, IndexError):
        return 1.0


def _cores():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:                                                      # a container's share of the machine
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = map(int, file.read().split())
        return max(1, min(cores, quota // period))
    except (OSError, ValueError):
        return cores


def _connect():
    """This process's fork server, started on first use and again where it has died. Not tied to us by PR_SET_PDEATHSIG,
    which fires when the *thread* that started it ends: it reads the end of its socket and watches its parent."""
    global _server
    if not hasattr(os, "fork"):
        raise RuntimeError(describe_isolation())
    with _lock:
        if _server is None or _ended(_server):
            near, far = socket.socketpair()
            options = {"PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
            options |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PYTHONHOME") if name in os.environ}
            with far, open(__file__, encoding="utf-8") as file:
                source = file.read().rpartition("\n# --- sandbox ---\n")[2]
                process = subprocess.Popen([sys.executable, "-B", "-c", source + "_serve()"], stdin=far,
                                           stdout=subprocess.DEVNULL, env=options, cwd="/", start_new_session=True)
            near.settimeout(60)
            if not (hello := near.makefile().readline()):
                raise RuntimeError(f"the code sandbox did not start: {process.args} ended with status {process.wait()}")
            _server = SimpleNamespace(socket=near, process=process, layers=json.loads(hello))
        return _server


def _ended(server):
    """Its process is the guard of the one that forks, and notices that one's end late; the socket shows it at once."""
    poll = select.poll()
    poll.register(server.socket, select.POLLIN)               # after its first line comes nothing but the end of file
    return bool(poll.poll(0)) or server.process.poll() is not None


def _disconnect(wait=True):
    global _server, _lock
    if _server:
        _server.socket.close()
        if wait:
            _server.process.wait()
    _server, _lock = None, threading.Lock()


atexit.register(_disconnect)
if hasattr(os, "register_at_fork"):                           # a forked child of the trainer starts its own
    os.register_at_fork(after_in_child=lambda: _disconnect(wait=False))



# --- sandbox ---
# The fork server runs this section alone: the less it holds, the less each fork has to copy.

import builtins                                               # noqa: E402
import ctypes
import gc
import itertools
import json
import linecache
import marshal
import math
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
import types
from functools import lru_cache, partial

try:
    import resource
except ImportError:                                           # Windows
    resource = None

_ASK, _STATUS, _LINUX = struct.Struct("!cIdI"), struct.Struct("!id"), sys.platform == "linux"
_STARRED = "typing math collections itertools functools heapq bisect".split()
_MODULES = _STARRED + "operator string random re sys os io copy json datetime decimal fractions statistics".split()


def _send(sock, message):
    sock.sendall(json.dumps(message).encode() + b"\n")


def _pack(value):
    """Plain data as JSON that keeps the exact built-in type: lists as they are, others as {type: content}."""
    if value is None or isinstance(value, (bool, float, str)) or isinstance(value, int) and abs(value) < 1 << 60:
        return value
    if isinstance(value, dict):
        return {"dict": [[_pack(k), _pack(v)] for k, v in value.items()]}
    if isinstance(value, (list, tuple, set, frozenset)) or hasattr(value, "__next__"):
        items = [_pack(item) for item in itertools.islice(value, 1 << 20)]
        kinds = [kind.__name__ for kind in (tuple, set, frozenset) if isinstance(value, kind)] or ["iter"]
        return items if isinstance(value, list) else {kinds[0]: items}
    for kind, write in ((int, hex), (bytes, bytes.hex), (complex, str)):
        if isinstance(value, kind):
            return {kind.__name__: write(value)}
    if getattr(value, "shape", None) == ():                   # a number of numpy's
        return _pack(value.item())
    raise TypeError(f"the function returned an object of type {type(value).__name__}, not plain data")


def _unpack(data):
    if type(data) is list:
        return [_unpack(item) for item in data]
    if type(data) is not dict:
        return data
    (kind, content), = data.items()
    if kind in ("int", "bytes", "complex"):
        return {"int": lambda x: int(x, 16), "bytes": bytes.fromhex, "complex": complex}[kind](content)
    return {"dict": dict, "tuple": tuple, "set": set, "frozenset": frozenset, "iter": iter}[kind](_unpack(content))


def _isolate():
    """Enter the layers in a new process: (folder for the sandboxes, {layer: does it hold})."""
    trainer, layers = os.getppid(), _enter_namespaces() if _LINUX else {"Linux": False}
    folder = base = f"/tmp/sandbox-{os.urandom(8).hex()}"
    os.mkdir(base, 0o700)
    if inner := os.fork():                                    # the first of the PID namespace: its end ends all
        os.close(0)                                           # or the trainer would not see the end of the socket
        while os.waitpid(inner, os.WNOHANG) == (0, 0) and os.getppid() == trainer:
            time.sleep(0.2)
        _attempt(os.kill, inner, signal.SIGKILL)
        os._exit(not _attempt(_remove_tree, folder))
    if _LINUX:
        _attempt(_libc, "prctl", 1, signal.SIGKILL)           # PR_SET_PDEATHSIG
        layers["mount namespace"] = _attempt(_libc, "unshare", _NEWNS) and _attempt(_build_root, base)
        if layers["mount namespace"]:
            base = "/sandbox"
        layers["no_new_privs"], layers["Landlock"] = _attempt(_libc, "prctl", 38, 1), _attempt(_landlock, base)
        layers["no capabilities"] = _attempt(_libc, "capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
        _attempt(_libc, "prctl", 4, 0), _attempt(_filter)     # not traceable; the filter is built once
        if (trial := os.fork()) == 0:
            os._exit(not _attempt(_seccomp))
        layers["seccomp"] = os.waitpid(trial, 0)[1] == 0
    os.makedirs(base, exist_ok=True)
    os.chmod(base, 0o300)  # a folder in it cannot be found but by its name, a random one
    return base, layers


def _prepare():
    """Whatever a child needs and can inherit, made once: each page that a child writes to is copied for it."""
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    _attempt(resource.setrlimit, resource.RLIMIT_STACK, (1 << 29 if hard == resource.RLIM_INFINITY else hard, hard))
    for name, value in (("CORE", 0), ("FSIZE", 1 << 24), ("NPROC", 4096)):
        _attempt(resource.setrlimit, getattr(resource, "RLIMIT_" + name), (value, value))
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape")
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", errors="surrogateescape")
    sys.stderr = sys.__stderr__ = open(2, "w", 1, encoding="utf-8", errors="backslashreplace")
    sys.argv = ["program.py"]
    os.environ.clear()
    _common_names()
    warm = "for line in ['1 2']:\n    print(sum(map(int, line.split())), flush=True)"
    exec(compile(warm, "warm", "exec"), {})                   # the first compile() costs 2 ms, and 160 pages
    gc.collect(), gc.freeze()


def _serve():
    """Give up all power but to fork, say which layers hold, then fork for each request until the trainer is gone."""
    base, layers = _isolate()
    on, off = (", ".join(name for name in layers if bool(layers[name]) == wanted) for wanted in (True, False))
    weak = not any(layers.get(name) for name in ("mount namespace", "Landlock", "seccomp"))
    sock, poll, runs = socket.socket(fileno=os.dup(0)), select.poll(), {}
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    _prepare()
    pidfds = _attempt(lambda: os.close(os.pidfd_open(os.getpid())))
    _send(sock, f"code sandbox: own session, resource limits, empty environment, fresh folder, {on}; "
          f"missing: {off or 'nothing'}" + "; NO STRONG ISOLATION: programs reach this user's files" * weak)
    poll.register(sock, select.POLLIN)
    while True:
        for fd, _ in poll.poll(None if pidfds else 5):
            if fd == sock.fileno():
                request, fds, *_ = socket.recv_fds(sock, _ASK.size, 8)
                if not request:
                    os._exit(0)
                status, *fds = fds
                work = f"{base}/{os.urandom(16).hex()}"
                if (pid := _fork()) == 0:
                    _work(work, fds, *_ASK.unpack(request))
                runs[pid] = socket.socket(fileno=status), os.pidfd_open(pid) if pidfds else -1, work
                for watched in runs[pid][:1 + pidfds]:
                    poll.register(watched, select.POLLIN)
                for extra in fds:
                    os.close(extra)
            else:                                             # the end of a child; the trainer's word, or its end
                for pid in [pid for pid, run in runs.items() if run[0].fileno() == fd]:
                    poll.unregister(fd)
                    os.kill(pid, signal.SIGKILL)
        while runs and (ended := os.wait4(-1, os.WNOHANG))[0]:
            if ended[0] in runs:
                _bury(poll, *ended, *runs.pop(ended[0]))


def _bury(poll, pid, code, usage, status, pidfd, work):
    """Of a child that has ended: kill the rest of its group, report, remove its folder."""
    report = _STATUS.pack(code, usage.ru_utime + usage.ru_stime)
    for action, *args in ((os.killpg, pid, signal.SIGKILL), (status.sendall, report), (poll.unregister, status),
                          (poll.unregister, pidfd), (os.close, pidfd), (_remove_tree, work)):
        _attempt(action, *args)
    status.close()


def _remove_tree(folder):
    """Remove a folder of any depth and permissions: subfolders are moved up until there are none."""
    if _attempt(os.rmdir, folder):
        return
    os.chmod(folder, 0o700)
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in os.scandir(entry.path):
                os.rename(inner.path, os.path.join(folder, os.urandom(16).hex()))
            os.rmdir(entry.path)
    os.rmdir(folder)


def _work(work, fds, kind, size, cpu, memory_mb):
    """In a child of the server: put the descriptors in place, set the limits, then do what is asked, and end."""
    try:
        os.setsid()
        for fd, place in zip(fds, (1, 2, 5, 0 if kind == b"s" else 3, 4)):
            os.dup2(fd, place)
        request = marshal.loads(os.pread(5, size, 0))         # from the trainer: trusted
        os.closerange(3 if kind == b"s" else len(fds), 1024)  # 3: the channel; 4: a judge's, to its sandbox
        os.mkdir(work, 0o700)
        os.chdir(work)
        for limit, value in ((resource.RLIMIT_CPU, math.ceil(cpu)), (resource.RLIMIT_AS, memory_mb << 20),
                             (resource.RLIMIT_NOFILE, 64)):
            _attempt(resource.setrlimit, limit, (value, value))
        if _LINUX:
            _attempt(_libc, "prctl", 1, 9), _attempt(_seccomp)  # die with the server
        if kind == b"j":
            _judge(request)
        elif kind == b"s":
            os._exit(_run_script(request["source"]))
        else:
            _run_functions(request)
        os._exit(0)
    finally:
        os._exit(1)


def _load_program(source, name, names):
    module = types.ModuleType(name)
    module.__dict__.update(names)
    sys.modules[name] = module
    linecache.cache["program.py"] = len(source), None, source.splitlines(True), "program.py"
    exec(compile(source, "program.py", "exec"), module.__dict__)
    return module


def _report(error, depth):
    trace = error.__traceback__
    for _ in range(depth):                                    # without our own frames
        trace = trace and trace.tb_next
    traceback.print_exception(type(error), error, trace)


def _run_script(source):
    """What the interpreter does: the exit code."""
    code = 0
    try:
        _load_program(source, "__main__", {})
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if code and code is not stop.code:
            print(stop.code, file=sys.stderr)
    except BaseException as error:
        code = _report(error, 2) or 1
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    if "atexit" in sys.modules:
        sys.modules["atexit"]._run_exitfuncs()
    for file in (sys.stdout, sys.__stdout__):
        if not file.closed:
            file.flush()
    return code & 255


def _run_functions(request):
    """Load the program as a module with the names that graders define; answer calls of its methods or functions."""
    channel, program, failure = socket.socket(fileno=3), {}, None
    try:
        sys.modules["solution"] = types.ModuleType("solution")
        program = _load_program(request["source"], "solution", _common_names()).__dict__
    except SystemExit:
        program = sys.modules["solution"].__dict__
    except BaseException as error:
        failure = error
    for name, args, kwargs in [request["call"]] if "call" in request else map(json.loads, channel.makefile()):
        try:
            if failure:
                raise failure
            owner = program.get("Solution")
            if not hasattr(owner, name) and name not in program:
                raise NameError(f"name {name!r} is not defined")
            function = getattr(owner(), name) if hasattr(owner, name) else program[name]
            reply = {"value": _pack(function(*_unpack(args), **_unpack(kwargs)))}
        except BaseException as error:
            _report(error, 3 if failure else 1)
            reply = {"error": type(error).__name__, "text": str(error)[:200]}
        _send(channel, reply)
    sys.stdout.flush()


def _judge(request):
    """Run one assertion test: each name that it does not define is a function of the program, called in the sandbox."""
    sandbox, replies, last = socket.socket(fileno=4), open(4, "rb"), {"ok": False, "lost": False}
    tests = dict(_common_names())
    os.set_blocking(4, True)

    def call(name, *args, **kwargs):
        _send(sandbox, [name, _pack(args), _pack(kwargs)])
        line = replies.readline()
        last["lost"] |= not line
        reply = json.loads(line)
        value = None if "error" in reply else _unpack(reply["value"])
        if name == request["entry"]:
            inside = ", ".join([*map(repr, args), *(f"{key}={arg!r}" for key, arg in kwargs.items())])
            last.update(call=f"{name}({inside})"[:600], value="" if "error" in reply else repr(value)[:600])
        if "error" in reply:
            kind = getattr(builtins, str(reply["error"]), None)
            raise (kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError)(reply["text"])
        return value

    blocks = [compile(request["source"], "<test>", "exec")]
    for block in blocks:
        blocks += [const for const in block.co_consts if isinstance(const, types.CodeType)]
        for name in block.co_names:
            if name not in tests and not hasattr(builtins, name) or name == request["entry"]:
                tests[name] = partial(call, name)
    try:
        exec(blocks[0], tests)
        last["ok"] = not last["lost"]
    except BaseException:
        pass                                                  # its text may hold the expected value
    _send(socket.socket(fileno=3), last)


@lru_cache(None)
def _common_names():
    """What graders define before a solution: the usual modules and their names, unless one hides a builtin (pow)."""
    names = {name: __import__(name) for name in _MODULES}
    stars = [(name, getattr(names[star], name)) for star in _STARRED for name in dir(names[star]) if name[0] != "_"]
    return {name: value for name, value in stars if not hasattr(builtins, name)} | names


_LIBRARY = ctypes.CDLL(None, use_errno=True) if _LINUX else None
# os.fork would run threading's and random's handlers in each child: half a millisecond. The server has one thread, so
# there is nothing to repair, and that all programs draw the same random numbers makes their verdicts repeatable.
_fork = ctypes.PyDLL(None).fork if _LINUX else getattr(os, "fork", None)
_NEWNS, _NEWUSER, _NEWPID, _NEWNET, _NEWIPC = 0x20000, 0x10000000, 0x20000000, 0x40000000, 0x8000000
_DENIED = {    # machine: audit number; calls for processes, signals, tracing, sockets, namespaces, mounts, file modes,
    # kernel surfaces, memory outside the limit; then clone, clone3 and prlimit64, which depend on an argument
    "x86_64": (0xC000003E, 57, 58, 59, 322, 62, 200, 234, 129, 297, 424, 434, 438, 101, 310, 311, 41, 272, 308, 165,
               166, 155, 90, 91, 268, 452, 425, 321, 298, 250, 248, 249, 29, 68, 64, 240, 323, 319, 56, 435, 302),
    "aarch64": (0xC00000B7, 221, 281, 129, 130, 131, 138, 240, 424, 434, 438, 117, 270, 271, 198, 97, 268, 40, 39, 41,
                52, 53, 452, 425, 280, 241, 219, 217, 218, 194, 186, 190, 180, 282, 279, 220, 435, 261)}


def _libc(name, *args):
    """Call a function of the C library (arguments left out are 0); OSError where it fails."""
    args += (0,) * (5 - len(args))
    result = getattr(_LIBRARY, name)(*(ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def _attempt(function, *args):
    try:
        function(*args)
        return True
    except (OSError, AttributeError, KeyError, ValueError):
        return False


def _enter_namespaces():
    def own_user():
        ids = os.geteuid(), os.getegid()
        _libc("unshare", _NEWUSER)
        for name, text in zip(("setgroups", "uid_map", "gid_map"), ("deny", *(f"65534 {number} 1" for number in ids))):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        with open("/proc/sys/user/max_user_namespaces", "w") as file:
            file.write("0")                                   # no second one inside, with its new powers
    layers = {"user namespace": _attempt(own_user)}
    flags = {"network": _NEWNET, "IPC": _NEWIPC, "PID": _NEWPID}
    return layers | {f"{name} namespace": _attempt(_libc, "unshare", flag) for name, flag in flags.items()}


@lru_cache(None)
def _readable():
    """What a Python program has to read: the interpreter's own folders and the system's libraries."""
    wanted = {sys.prefix, sys.base_prefix, sys.exec_prefix, *(path for path in sys.path if path.endswith("-packages")),
              "/usr/lib", "/lib", "/lib64", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache",
              "/dev/null", "/dev/urandom"}
    wanted = {path for path in wanted | set(map(os.path.realpath, wanted)) if os.path.exists(path) and path != "/"}
    return sorted(path for path in wanted if not any(path.startswith(other + "/") for other in wanted))


def _build_root(folder):
    """A new root of read-only views of what is readable, and one writable folder; the old root is gone."""
    _libc("mount", None, b"/", None, 0x44000)                 # MS_REC | MS_PRIVATE
    _libc("mount", b"tmpfs", b"/proc", b"tmpfs")  # a folder that always exists and holds nothing we still need
    os.mkdir("/proc/sandbox")
    for path in _readable():
        os.makedirs("/proc" + (path if os.path.isdir(path) else os.path.dirname(path)), exist_ok=True)
        if not os.path.isdir(path):
            os.close(os.open("/proc" + path, os.O_CREAT))
    for path in map(os.fsencode, _readable()):
        _libc("mount", path, b"/proc" + path, None, 0x5000)   # MS_BIND | MS_REC
    _libc("syscall", 442, -100, b"/proc", 0x8000, struct.pack("QQQQ", 3, 0, 0, 0), 32)  # mount_setattr: read-only
    _libc("mount", b"tmpfs", b"/proc/sandbox", b"tmpfs", 6, b"size=256m,nr_inodes=65536")  # nosuid, nodev
    os.rmdir(folder)                                          # not needed now, and out of reach soon
    os.chdir("/proc")
    _libc("pivot_root", b".", b".")
    _libc("umount2", b".", 2)                                 # MNT_DETACH
    os.chdir("/")


def _landlock(base):
    abi = _libc("syscall", 444, None, 0, 1)
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    rules = _libc("syscall", 444, struct.pack("QQQ", rights, 3, 3), 8 if abi < 4 else 16 if abi < 6 else 24, 0)
    for path in [*_readable(), base]:
        fd = os.open(path, os.O_PATH)
        allowed = rights if path == base else 13 if os.path.isdir(path) else 6 if path.startswith("/dev/") else 4
        _libc("syscall", 445, rules, 1, struct.pack("=Qi", allowed, fd), 0)  # 13: execute, read files, read folders
        os.close(fd)
    _libc("syscall", 446, rules, 0)
    os.close(rules)


@lru_cache(None)
def _filter():
    """A seccomp program that denies what no solution needs; threads stay allowed, and limits of one's own."""
    arch, *denied, clone, clone3, prlimit = _DENIED[os.uname().machine]
    load, equal, deny, allow = 0x20, 0x15, (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)       # EPERM
    code = [(load, 0, 0, 4), (equal, 1, 0, arch), (6, 0, 0, 0x80000000), (load, 0, 0, 0), (0x35, 0, 1, 1 << 30), deny]
    code += [(equal, len(denied) - i, 0, number) for i, number in enumerate(denied)] + [(5, 0, 0, 1), deny]
    code += [(equal, 0, 1, clone3), (6, 0, 0, 0x50026)]       # ENOSYS: the C library falls back to clone
    code += [(equal, 0, 4, clone), (load, 0, 0, 16), (0x45, 1, 0, 1 << 16), deny, allow]   # CLONE_THREAD
    code += [(equal, 0, 3, prlimit), (load, 0, 0, 16), (equal, 1, 0, 0), deny, allow]      # of process 0: itself
    buffer = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
    return struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer)), buffer


def _seccomp():
    _libc("prctl", 22, 2, _filter()[0])
