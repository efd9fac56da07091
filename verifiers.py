r"""Rule-based verifiers for math, science multiple choice, tool use and code: response and gold answer in, Verdict out.

Needs the standard library only; knows nothing of models, tokenizers or training. Its input is text from a model that is
optimised against it: no model text is evaluated outside the sandbox, scans are linear, every recursion and every integer has
a bound, and feedback is made from the response alone: the gold answer only decides whether there is any.

Math is compared by value. A recursive-descent parser for LaTeX and plain notation builds a tree; numbers are exact fractions;
variables, roots and functions are evaluated at random real points (one where neither side is real says nothing, so that
\sqrt{x^3} is x\sqrt{x}, and |x| is not x). Floats are equal within 1e-11; a long decimal never equals an irrational number.

    verify("math", r"so it is \boxed{\frac12}", "0.5")       # Verdict(correct=True, answer='\\frac12', feedback='')
"""

import cmath
import json
import math
import random
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

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
    """Verdict on any response text. ValueError for an unknown task or a gold `answer` of the wrong form, for nothing else."""
    check_answer(task, answer)
    return {"math": verify_math, "science": verify_science, "tool": verify_tool, "code": verify_code}[task](response, answer)


def check_answer(task, answer):
    """ValueError, saying what is wrong, unless `answer` has the form of a gold answer of this task."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    if task == "math" and not (isinstance(answer, str) and 0 < len(answer.strip()) <= MAX_ANSWER):
        raise ValueError(f"a math answer is a string of 1 to {MAX_ANSWER} characters, not {answer!r:.80}")
    if task == "science" and not (isinstance(answer, str) and re.fullmatch("[A-Za-z]", answer)):
        raise ValueError(f"a science answer is one letter, not {answer!r:.80}")
    if task in ("tool", "code"):
        (_gold_actions if task == "tool" else _check_code_answer)(answer)


def _visible(text):
    """Text outside <think>...</think>: a lone </think> hides all before it (the prompt opened it), an unclosed one the rest."""
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
    "mm", "cm centimeter centimeters", "m meter meters", "km kilometer kilometers", "in inch inches", "ft foot feet", "yd yard yards",
    "mi mile miles", "g gram grams", "kg kilogram kilograms", "lb lbs pound pounds", "oz ounce ounces", "sec s second seconds",
    "min minute minutes", "hr h hour hours", "day days", "week weeks", "month months", "year years", "usd dollar dollars",
    "cent cents", "euro euros", "ml", "mph", "am", "pm") for word in line.split()}
_WORDS = {word: n for n, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_TRIG = {"sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "sec": lambda z: 1 / cmath.cos(z),
         "csc": lambda z: 1 / cmath.sin(z), "cot": lambda z: 1 / cmath.tan(z)}
_FUNCTIONS = {**_TRIG, "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan, "sinh": cmath.sinh, "cosh": cmath.cosh,
              "tanh": cmath.tanh, "log": cmath.log10, "ln": cmath.log, "exp": cmath.exp, "abs": abs}
_SAME = dict(pair.split(":", 1) for pair in (
    r"dfrac:frac tfrac:frac cfrac:frac dbinom:binom tbinom:binom times:* cdot:* ast:* div:/ leq:≤ le:≤ leqslant:≤ geq:≥ ge:≥ lt:< gt:> "
    r"geqslant:≥ ne:≠ neq:≠ approx:≈ in:∈ cup:∪ pm:± mp:∓ lvert:| rvert:| vert:| langle:( rangle:) lbrack:[ rbrack:] lbrace:\{ rbrace:\} "
    r"infinity:infty inf:infty oo:infty varnothing:emptyset degree:° degrees:° percent:% \%:% **:^ <=:≤ >=:≥ !=:≠ ;:,").split())
_SYMBOLS = {*r"frac binom sqrt \{ \} * / ≤ ≥ < > ≠ ≈ ∈ ∪ ± ∓ | ( ) [ ] ° %".split()}
_TEXT = "text|mbox|hbox|textbf|textit|textrm|textsf|textnormal|mathrm|mathsf|operatorname"
_IGNORED = {*"left right big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle quad qquad limits boxed fbox framebox mathbf mathit "
            "mathbb mathcal boldsymbol bm bf rm pounds euro".split(), *_TEXT.split("|")}
_UNICODE = {"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "²": "^2", "³": "^3",
            "½": r"\frac{1}{2}", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "~": " ", "$": "", "€": "", "£": "", '"': ""}


def _mixed(m):
    return f"({m[1]}+{m[2]}/{m[3]})" if int(m[2]) < int(m[3]) else m[0]


_REWRITES = [(re.compile(pattern), new) for pattern, new in (
    (r"\\\$", "¤"), ("[" + "".join(_UNICODE) + "]", lambda m: _UNICODE[m[0]]),
    (r"\^\s*\{?\s*(?:\\circ|\\degree|°)\s*\}?", "°"), (r"\\[hv]?phantom\s*(?:\{[^{}]*\}|.)", ""),
    (r"(?<=[A-Za-z]{2})\.(?=\s)", ""), (r"\b([aApP])\.\s?([mM])\b\.?", r"\1\2"),
    (r"\\begin\s*\{(?:[pb]?matrix|array\}\s*\{[^{}]*)\}", "⟦"), (r"(?:\\\\\s*)?\\end\s*\{(?:[pb]?matrix|array)\}", "⟧"),
    (r"(?<![\d.])\d{1,3}(?:(?:\{,\}|, ?\\! ?|\\[,;:! ] ?| |')\d{3})+(?!\d)", lambda m: re.sub(r"\D", "", m[0])),
    (r"(\\[dtc]?frac)\s*(\d)", r"\1{\2}"), (r"(\\[dtc]?frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"(?<![\d.^_a-zA-Z])(?<!sqrt )(\d+)\s*\\[dtc]?frac\s*\{(\d+)\}\s*\{(\d+)\}", _mixed),  # 2\frac{1}{3} is a sum
    (r"(?<![\d^_.])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)", _mixed),
    (r"\\(?:text|mathrm)\s*\{\s*([\dA-Z]*\d[\dA-Z]*)\s*\}\s*_", r"\1_"),  # digits of a base
    (rf"\\(?:{_TEXT})\s*\{{([^{{}}]*)\}}", lambda m: re.sub("[A-Za-z]+", r'"\g<0>"', f" {m[1]} ")))]
_JOINED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)(?![^()\[\]]*?(?:[)\]]|\\\}))")  # not inside brackets: (1,234)
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
    """Tokens of a command (an unknown one is a variable), a run of letters in \\text, or one outside it: there up to three
    letters that are no unit are one variable each."""
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
_LEVELS = (("list", ","), ("rows", r"\\"), ("cells", "&"), ("rel", "=≈<>≤≥≠∈:"), ("union", "∪"), ("+", "+-"))  # loose to tight
_CLOSERS = {"(": ")]", "[": ")]", "{": "}", r"\{": (r"\}",), "|": "|", "⟦": "⟧"}


class _Parser:
    """Recursive descent; every recursion passes `atom`, which counts it. Trees: (num, q), (var, name), (words, text),
    (one of _LEVELS, signs, parts), (*, factors), (inv, x), (^, x, y), (!, x), (°, x), (%, x), (binom, n, k), (call, name, x),
    (set, items), (seq, brackets, items)."""

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
            elif kind in ("num", "var", "fn") or value in (*_CLOSERS, "frac", "binom", "sqrt") and not (value == "|" and self.in_bars):
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
            tree = ("num", Fraction(_WORDS[value])) if value in _WORDS else ("words" if len(value) > 1 else "var", value)
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
        """sin x, sin^2 x, log_2 x, sin(x): without brackets the argument ends at a sign, a word or the next function."""
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
    """Readings of an answer, each (tokens, tree or None, units): as it stands; for `(B) 5` also without the mark, and the mark."""
    try:
        tokens = _tokenize(text, join)
    except _Unreadable:
        return ()
    values = [str(value) for _, value in tokens[:3]] + ["", "", ""]
    skip = 3 if values[0] + values[2] == "()" else 2 if values[1] in tuple(".):") else 0
    readings = [tokens]
    if skip and len(tokens) > skip and re.fullmatch("[A-J]", values[skip - 2]) and tokens[skip][1] not in tuple("=+*/^_!,<>∪"):
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
        trees.append(tree[2] if tree[0] == "list" else (tree,))
        units |= parser.units
    items = tuple(item for pair in zip(*trees) for item in dict.fromkeys(pair))
    return (None if parser.peek()[0] != "end" else items[0] if len(items) == 1 else ("list", ",", items)), units


class _Point(dict):
    """Values of the constants, and of each variable a random one on first use; counts the work of the exact arithmetic."""

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
    if any(not isinstance(v, Fraction) or v.denominator > 1 or not 0 <= v <= (2200 if kind == "!" else MAX_BITS) for v in values):
        raise _Unreadable("factorial of what is no small whole number")
    return point.bounded(Fraction((math.factorial if kind == "!" else math.comb)(*map(int, values))))


def _power(base, exponent):
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator <= 2 and (base >= 0 or exponent.denominator == 1):
        if base == 0 and exponent <= 0:
            raise ZeroDivisionError
        if abs(base) != 1 and abs(exponent) * max(base.numerator.bit_length(), base.denominator.bit_length()) > MAX_BITS:
            raise _Unreadable("too large")
        root = Fraction(*map(math.isqrt, base.as_integer_ratio())) if exponent.denominator == 2 else base
        if exponent.denominator == 1 or root * root == base:
            return root ** (exponent.numerator if abs(base) != 1 else exponent.numerator % 2)
    real = None if complex(base).imag else complex(base).real
    if real is not None and real < 0 and isinstance(exponent, Fraction) and exponent.denominator % 2 and exponent.denominator > 1:
        return (-1) ** exponent.numerator * (-real) ** float(exponent)  # the real cube root: that of -8 is -2
    value = real ** float(exponent) if real is not None and real >= 0 and not isinstance(exponent, complex) else complex(base) ** complex(exponent)
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
    """Equality of trees. `signs`: what ° and % count for; `has_i`: are complex values meant?; `work`: what is left of it."""
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
        if any(tree[1] == right[1] and self.equal_all(tree[2], right[2]) for tree in (left, turned if ":" not in left[1] else left)):
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
                both = tokens + gold_tokens
                convertible = ("op", "°") in both or ("op", "%") in both
                for signs in ({"°": Fraction(1), "%": Fraction(1)}, {"°": math.pi / 180, "%": Fraction(1, 100)})[:1 + convertible]:
                    try:
                        if _Comparison(signs, ("var", "i") in both, work).equal(tree, gold_tree):
                            return True
                    except _Unreadable:
                        pass  # beyond a bound: not equal in this reading
    return response.strip() == gold.strip()


def _final_answer(text):
    """(answer, None) or (None, what is missing): the last complete \\boxed, else a closing "answer is ..." or "#### ..."."""
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
    marks = list(re.finditer(r"####|\banswers?\b[*_]*\s*(?:is|are|:|=)", text, re.I))
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
        return Verdict(False, found[:200], f"The final answer is too long to be one: more than {MAX_ANSWER} characters.")
    if _same_answer(found, answer):
        return Verdict(True, found, "")
    readable = any(tree is not None for _, tree, _ in _read(found, True))
    return Verdict(False, found, f"The final answer {'is wrong' if readable else 'could not be read as a value'}: {found[:200]}")


# --- science ---


_OPTION = r"[(\[]?\b([A-Za-z])\b[)\]]?"
_MORE = rf"\s*(?:[,;/&|+]|and\b|or\b)[\s,]*(?:or\s+|and\s+|option\s+)?{_OPTION}"


def _options(text):
    """The letters that a short text chooses: B, (B), B., b, B: text, B because. The article "a" and "I" need a mark after them."""
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|boxed|fbox)\b|\\[()\[\]]|[*_$`{}]", "", text[:5_000]).strip()
    text = re.sub(r"^(?:the )?(?:correct )?(?:option|choice|answer)(?: is)?:?\s+", "", text, flags=re.I)
    m = re.match(rf"{_OPTION}(?=\W*$)|[(\[]([A-Za-z])[)\]]|([A-Za-z])(?={_MORE})|([A-Za-z])(?=[.:),])|([B-HJ-Z])\b|([A-Z])(?=[\s,]+[A-Z]\W*$)", text)
    if not m:
        return set()
    rest = text[m.end():]
    letters = [next(filter(None, m.groups())), *re.findall(r"^\s*[(\[]?([A-Z])[)\].:]\s", rest, re.M)]  # a second option's line
    while more := re.match(_MORE, rest) or re.match(r"[\s,]+()[(\[]?([A-Z])[)\]]?(?=\W*$)", rest):
        letters.append(more[more.lastindex])
        rest = rest[more.end():]
    return {letter.upper() for letter in letters}


def verify_science(response, answer):
    """`answer`: the letter of the right option. Read from the last <answer>, else the last \\boxed, else an "answer is (B)"."""
    check_answer("science", answer)
    text = _visible(response)
    tags = re.findall(r"<answer>([^<]*(?:<(?!/?answer>)[^<]*)*)</answer>", text, re.I)
    boxed = _final_answer(text)[0] if re.search(r"\\(?:boxed|fbox)", text) else None
    said = re.findall(r"\banswer\W{0,5}(?:is\b|:)[ \t:*$]*(?=((?:option )?(?:[A-Z]\b|[(\[][A-Za-z][)\]]).{0,300}))", text)
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
    return Fraction(repr(float(text)) if "e" in text.lower() else text)  # Fraction("1e-999999999") would build the power


_JSON = json.JSONDecoder(object_pairs_hook=_json_object, parse_constant=_json_number, parse_float=_json_number, parse_int=_json_number)
_LABEL = re.compile(r"^[ \t]*(?:Action:(.*)|Action Input:\s*(?:```(?:json)?\s*)?)", re.M)


def _read_actions(text):
    """[(name, arguments), ...]; ValueError saying what is wrong with the form. Labels count at the start of a line only, and
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
            raise ValueError(f"The Action Input of action {len(actions) + 1} is not valid JSON: {str(error)[:200]}") from None
        if not isinstance(arguments, dict):
            raise ValueError(f"The Action Input of action {len(actions) + 1} is not a JSON object.")
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
        raise ValueError(f"a tool answer is a list of {{'Action': name, 'Action_Input': JSON object as text}}: {error!r:.200}") from None
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
    return Verdict(correct, shown, "" if correct else "The actions are well formed, but their tools, inputs, number or order are wrong.")


# --- code ---


def _check_code_answer(answer):
    raise NotImplementedError("the code verifier goes here")


def verify_code(response, answer):
    raise NotImplementedError("the code verifier goes here")
