r"""When are two final answers of a mathematics problem the same?

    same_answer(r"\frac12", "0.5")                             # True
    same_answer("0<x<12.5", "(0,12.5)")                        # True: the same set of numbers
    same_answer(r"x\equiv 2\pmod 6", r"x\equiv 3\pmod 4")      # False

The reader knows the commands, functions, words and units in the tables below. What holds anything
else, or does not fit the grammar, is *text*: equal only to the same text without its decoration.

    answer   = item {("," | "or") item}                  1, 2    x=1 or x=2
    item     = side {("=" | "<" | ":" ...) side}         x = 5    0<x<3    3:4    x≡2 (mod 6)
    side     = sum {"∪" sum} | quantity | words          (0,1)∪{3}
    quantity = sum unit {number unit}                    5 km/h    2 hours 30 minutes    12 apples
    words    = {word | number}                           not even    June 20    twenty-five
    sum      = product {("+" | "-") product}             x^2 - 2x
    product  = power {["*" | "/" | "mod"] power}         2x    3/4    17 mod 5
    power    = {"-"} atom {"^" atom | "!" | "°" | "%"}   -x^2    5!    90°
    atom     = number | name ["(" answer ")"] | frac atom atom | sqrt atom | function atom | group
    group    = "(" answer ")" | "[0,3)" | "{" answer "}" | "|" answer "|" | "⌊" answer "⌋" | matrix
    matrix   = row {"\\" row};  row = answer {"&" answer}

For example 2\frac{1}{3}\text{ hours} is rewritten to (2+1/3) "hours" and read as

    ("quantity", ("+", "+", (2, ("*", (1, ("inv", 3))))), (("h", 1),))    # 2: ("num", Fraction(2))

Trees are compared by value: numbers are exact fractions; variables, roots and functions are
evaluated at random real points. Points where neither side is real are skipped: sqrt(x^3) is x
sqrt(x), but |x| is not x. Floats are equal within 1e-11; a long decimal never equals an irrational
number. Every recursion and every integer has a bound."""

import cmath
import math
import random
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

MAX_DEPTH = 25  # nested brackets and functions, each a few Python frames
MAX_BITS = 20_000  # of any integer on the way: 2004! has 19,089
MAX_WORK = 4_000_000  # bits of all integers on the way, together

# --- what is known ---

_UNITS = """length: mm 0.001 millimeter millimetre, cm 0.01 centimeter centimetre, m 1 meter 米
length: km 1000 kilometer kilometre, in 0.0254 inch, ft 0.3048 foot, yd 0.9144 yard
time: s 1 sec second 秒, min 60 minute 分钟, h 3600 hr hour 小时, day 86400 天, week 604800
money: cent 1 ¢ penny, dollar 100 usd buck
mass: oz 1 ounce, lb 16 pound
-: mile mi, mg milligram, g gram gm 克, kg kilogram kilo 千克, ton tonne, L liter litre, mL ml
-: milliliter, gallon gal, quart, pint, cup, tablespoon tbsp, teaspoon tsp, acre, hectare, month
-: year yr 年, euro eur, yuan 元 rmb, rupee, yen, peso, won, franc, ruble, dime, nickel, quarter
-: N newton, J joule, W watt, kW kilowatt, kWh, V volt, A amp ampere, K kelvin, C celsius, Hz hertz
-: F fahrenheit, Pa pascal, mol mole, rad radian, mph, am, pm, unit, bit, byte, kb, mb, gb, rpm, hp
-: cal calorie, kcal, dB decibel, ohm, knot"""  # dimension: unit, its size, other names
_NOUNS = """acorn adult animal answer apartment apple arrangement baby bag ball balloon banana bar
bead bean bear bee bicycle bike bill bird blanket block blueberry boat book bottle bowl box boy
bracelet bread brick brother brownie bucket bug burger bus button cake can candle candy cookie car
card carrot cat chair chicken child chip choice chocolate clip coin color combination computer
container copy couple cow crate crayon cupcake customer daughter desk diamond dog doll donut
doughnut door dress driver duck egg element elephant employee episode error event eye face family
fan farmer fish flag flower folder fork friend frog fruit game gift girl glass goal goat grape
group guest gumball hamburger hand handshake hat head hen horse hotdog house integer invitation
item jar jewel key kid kitten lap leaf leg lemon letter lightbulb lion lollipop magazine man marble
mango marker match meal melon member message minnow monkey movie muffin mushroom nail necklace
necktie night nut orange outcome outfit page painting pair pancake paper parent party passenger
patient peach peanut pear pearl pen pencil people person pet phone photo piano picture pie piece
pig pill pillow pizza plane plant plate player point possibility potato present prize problem
program pumpkin pupil puppy puzzle question rabbit ribbon ring robot rock roll room rose row
sandwich scarf seat seed sheep shell shirt shoe shop shot sibling sister skirt slice snack snake
sock soldier solution son song spider spoon stamp star step stick sticker stone store strawberry
student subset suit surfboard swimmer table team teacher ticket tile time tire toddler token tomato
tourist toy train tree triangle trip trophy truck tulip turkey value vase vehicle video village
visitor vote voter waffle way wheel window woman worker"""
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_ADJECTIVES = (
    "additional different distinct extra full identical possible right total whole".split()
)
_SHORT_WORDS = """all any ask blue bus cup east else even girl gold gray her him his hot if is it
its low man map may men mon more new no none north odd of off old on one out per raw sad she sq cu
six sum tan the thu tie to too true two west who win yes you fri tue year zero""".split()


def _pairs(text):
    """{left: right} of left=right, separated by spaces."""
    return dict(pair.split("=", 1) for pair in text.split())


_IRREGULAR = _pairs(
    "men=man women=woman children=child feet=foot people=person leaves=leaf loaves=loaf mice=mouse"
)
_DIGITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen""".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBERS = dict(zip([*_DIGITS, *_TENS], [*range(20), *range(20, 100, 10)], strict=True))
_PARTS = {"half": 2, "thirds": 3, "third": 3, "fourths": 4, "fifths": 5, "tenths": 10}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3}
_SCALES |= {"million": 10**6, "billion": 10**9, "trillion": 10**12}
_OPERATOR_WORDS = _pairs(
    "plus=+ minus=- times=* over=/ percent=% percentage=% pct=% degree=° degrees=° and=, or=or"
)
_TRIG = {name: getattr(cmath, name) for name in ("sin", "cos", "tan")}
_TRIG |= {"sec": lambda z: 1 / cmath.cos(z), "csc": lambda z: 1 / cmath.sin(z)}
_TRIG |= {"cot": lambda z: 1 / cmath.tan(z)}
_FUNCTIONS = {**_TRIG, "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan}
_FUNCTIONS |= {"log": cmath.log10, "lg": cmath.log10, "ln": cmath.log}
_FUNCTIONS |= {name: getattr(cmath, name) for name in ("sinh", "cosh", "tanh", "exp")}
_GREEK = """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho
sigma sigma tau upsilon phi chi psi omega""".split()  # in Unicode's order; sigma has two forms
_NAMES = {*_GREEK, *map(str.capitalize, _GREEK), "ell", "hbar", "infty", "emptyset", "reals"}
_NAMES |= {"varepsilon", "vartheta", "varphi", "varrho", *(f"set{c}" for c in "CNPQZ")}
_APPLIED = set("f g h F G H zeta Gamma phi varphi psi sigma tau Phi".split())  # f(x) is no product
_SAME = _pairs(r"""dfrac=frac tfrac=frac cfrac=frac nicefrac=frac sfrac=frac flatfrac=frac
frac=frac dbinom=binom tbinom=binom binom=binom sqrt=sqrt times=× cdot=* ast=* bullet=* div=/ leq=≤
le=≤ leqslant=≤ leqq=≤ geq=≥ ge=≥ geqslant=≥ geqq=≥ lt=< gt=> ne=≠ neq=≠ approx=≈ thickapprox=≈
in=∈ cup=∪ pm=± mp=∓ lvert=| rvert=| vert=| mid=| langle=( rangle=) lbrack=[ rbrack=] lbrace=\{
rbrace=\} lfloor=⌊ rfloor=⌋ lceil=⌈ rceil=⌉ infinity=infty inf=infty oo=infty varnothing=emptyset
degree=° percent=% \%=% **=^ ;=, colon=: equiv=≡ bmod=mod mod=mod pmod=pmod dots=… ldots=… cdots=…
dotsc=… ...=… land=, lor=or""")
_SAME |= {"<=": "≤", ">=": "≥", "!=": "≠", "==": "="}
_TEXT = "text|mbox|hbox|textbf|textit|textrm|textsf|textnormal|texttt|mathrm|mathsf|operatorname"
_DECORATION = {*_TEXT.split("|")}
_DECORATION |= set(
    """left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr displaystyle textstyle
scriptstyle quad qquad enspace thinspace medspace thickspace negthinspace limits nolimits boxed
fbox framebox mathbf mathit mathcal boldsymbol bm bf rm it sf tt cal large Large LARGE huge Huge
normalsize small footnotesize scriptsize tiny underline emph mathop mathord strut checkmark square
blacksquare Box qed pounds euro hfill noindent centering ensuremath""".split()
)
_UNICODE = _pairs(r"""−=- –=- —=- ‐=- ‑=- ‒=- ×=\times ·=* ⋅=* ∙=* ∗=* ÷=/ ∕=/ ⁄=/ ⩽=≤ ≦=≤ ⩾=≥ ≧=≥
∞=\infty √=\sqrt ∛=\sqrt[3] º=° ˚=° ′=' ’=' ∅=\emptyset ⟨=( ⟩=) 。=. 、=, …=\ldots ⋯=\ldots ℝ=\reals
ℤ=\setZ ℕ=\setN ℚ=\setQ ℂ=\setC ∣=| ℃=°C ℉=°F €= £= ¥= ϕ=\phi ✓= ✔= ✅= ☑= ∎= ■= □=""")
_UNICODE |= dict.fromkeys("\ufe0f\u200b\u20d7", "") | dict.fromkeys("\u00a0\u2009\u202f\u3000", " ")
_UNICODE |= {chr(0x3B1 + n): "\\" + name for n, name in enumerate(_GREEK)}
_UNICODE |= {chr(0x391 + n): "\\" + name.capitalize() for n, name in enumerate(_GREEK)}
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙᵢ", "0123456789+-ni", strict=True))


def _ascii(text):
    """Plain digits, signs and brackets: full-width 12 is 12, x₁ is x_{1}, ½ is a fraction."""
    text = re.sub("(\\d)[\u0305\u0307]", r"\\overline{\1}", text)  # 0.3̅
    for marks, sign in ((_RAISED, "^"), (_LOWERED, "_")):
        runs = re.split(f"([{''.join(marks)}]+)", text)
        plain = [run.translate(str.maketrans(marks)) for run in runs[1::2]]
        runs[1::2] = [f"{sign}{{{run}}}" for run in plain]
        text = "".join(runs)
    shown = []
    for c in text:
        plain, digit = unicodedata.normalize("NFKC", c), unicodedata.decimal(c, None)
        if unicodedata.decomposition(c).startswith("<fraction>"):
            plain = r"\frac{%s}{%s}" % tuple(plain.split("⁄"))
        plain = _UNICODE.get(c, plain if digit is None else str(digit))
        plain = "".join(_UNICODE.get(part, part) for part in plain)
        shown.append(plain + " " if re.search(r"\\[a-zA-Z]+$", plain) else plain)
    return "".join(shown)


# --- rewriting rules: each with an example, two texts that become the same answer ---

_RULE_TABLE = r"""
\\\$ ⇒ ¤                                                  # \$5 ≠ 5\text{ cents}
[$~] ⇒ \x20                                               # $5$ = 5
\^\s*\{?\s*(?:\\circ|\\degree|°)\s*\}? ⇒ °                # 90^{\circ} = 90°
(?<=\d)\s*\^\s*\{?\s*TEXT\s*\{\s*o\s*\}(?:(?<=\}\})|\s*\})? ⇒ °    # 45^{\text{o}} = 45°
(?<=\d)\s*\^\s*(?:o\b|\{\s*o\s*\}) ⇒ °                    # 45^o = 45°
°\s*([CF])(?![A-Za-z]) ⇒ ° "\1"                           # 25^\circ C = 25°\text{C}
(?<=\d)\s*\^?\s*\{\s*TEXT\s*\{\s*ORD\s*\}\s*\} ⇒          # 12^{\text{th}} = 12
(?<=\d)\s*\^?\s*(?:TEXT\s*\{\s*ORD\s*\}|\{\s*ORD\s*\}|ORD\b) ⇒    # 12th = 12
\\[hv]?phantom\s*(?:\{[^{}]*\}|.)|\\[hv]space\*?\s*\{[^{}]*\} ⇒    # \phantom{-}5 = 5
\\(?:text)?color(?:box)?\s*(?:\[[^\]]*\])?\s*\{[^{}]*\} ⇒ # \textcolor{red}{5} = 5
(?<=[A-Za-z]{2})\.(?=\s) ⇒                                # 34\text{ sq. units} = 34
\b([aApP])\.\s?([mM])\b\.? ⇒ \1\2                         # 9 a.m. = 9 am
\\\\\s*\[\s*-?[\d.]+\s*[a-z]{2}\s*\] ⇒ \\\\               # ⟦1\\[4pt]2⟧ = ⟦1\\2⟧
\\begin\s*\{(?:MATRIX|array\}\s*\{[^{}]*)\} ⇒ ⟦           # \begin{array}{c}5\end{array} = ⟦5⟧
(?:\\\\\s*)?\\end\s*\{(?:MATRIX|array)\} ⇒ ⟧ # \begin{pmatrix}5\end{pmatrix} = ⟦5⟧
\{(IN*?)\\over(?![a-z])(IN*)\} ⇒ \\frac{\1}{\2}           # {4 \over 3} = 4/3
\{(IN*?)\\choose(?![a-z])(IN*)\} ⇒ \\binom{\1}{\2}        # {5\choose 2} = 10
^([^{}]*)\\over(?![a-z])([^{}]*)$ ⇒ \\frac{\1}{\2}        # 4\over 3 = 4/3
^([^{}]*)\\choose(?![a-z])([^{}]*)$ ⇒ \\binom{\1}{\2}     # 5\choose 2 = 10
\^\s*\{?\s*\\prime\s*\}? ⇒ '                              # f^{\prime}(x) = f'(x)
\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}? ⇒ \\overline{\1\2\3}     # 0.\dot{1}\dot{2} = 12/99
(?<![\d.])(\d*)\.(\d*)\s*\\(?:overline|bar|dot)\s*\{?(\d+)\}? ⇒ REPEATING   # 0.1\overline{6} = 1/6
(?<![\d.])(\d*)\.(\d*)\((\d+)\) ⇒ REPEATING               # 0.(3) = 1/3
(?<![\d.])\d{1,3}(?:(?:\{,\}|, ?\\! ?|\\[,;:! ] ?| |')\d{3})+(?!\d) ⇒ DIGITS    # 1\,722 = 1722
(?<![\w.^])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,4})(?![\w.]) ⇒ (\1*10^{\2})    # 1.5e4 = 15000
FRAC\s*(\d) ⇒ \\frac{\1}                                  # \frac12 = 1/2
FRAC\s*(\{[^{}]*\})\s*(\d) ⇒ \\frac\1{\2}                 # \frac{1}23 ≠ 1/23
(?<![\d.^_a-zA-Z])(?<!sqrt )(\d+)\s*FRAC\s*\{(\d+)\}\s*\{(\d+)\} ⇒ MIXED    # 2\frac{1}{3} = 7/3
(?<![\d^_.])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d) ⇒ MIXED       # 2 1/2 = 5/2
FRAC\s*\{\s*DIFF([a-z])\s*\}\s*\{\s*DIFF([a-z])\s*\} ⇒ \\frac{d\1}{d\2} # \frac{d y}{d x} = dy/dx
\b(\d[\d.]*) [a-z]+ (?:with|of) (\d[\d.]*)(?: [a-z]+)? each\b ⇒ \1*\2 # 3 bags of 4 pens each = 12
(?<=\d)\s*[xX]\s*10\s*\^ ⇒ *10^                            # 1.5 x 10^4 = 15000
\b(years?|feet|inches|miles|hours|days) (?:old|tall|long|away|wide|ago)\b ⇒ \1 # 9 years old = 9
FRAC\{\s*TEXT\{([a-z ]+)\}\}\{\s*TEXT\{(IN*)\}\} ⇒ \\text{\1/\2} # 5\frac{\text{km}}{\text{h}} = 5
\b((?:twen|thir|for|fif|six|seven|eigh|nine)ty|one|two)-(?=[a-z]) ⇒ \1\x20 # sixty-two = 62
\bhundred and\b ⇒ hundred                                 # one hundred and five = 105
\bdivided by\b ⇒ over                                     # 6 divided by 3 = 2
(hours?|hr|feet|ft|days?)\s+and\s*\}?\s*(?=\d+\s*(?:TEXT\{\s*)?[mhi]) ⇒ \1\x20 # 1 hr and 5 min = 65
\((?:\s*|TEXT\s*\{\s*)\\?[bp]?mod\b(?:\s*\})?([^()]*)\) ⇒ \\pmod{\1} # x≡2 (mod 6) = x≡2\pmod6
\b[Aa]ll (?:reals|real numbers)\b|\\mathbb\s*\{?\s*R\s*\}?|\\R\b ⇒ \\reals\x20 # \mathbb R = (-∞,∞)
\\mathbb\s*\{?\s*([A-Z])\s*\}? ⇒ \\set\1\x20              # x\in\mathbb{Z} = x\in\mathbb Z
^\s*\\\{\s*([a-z])(?:\s*\\in\s*\\reals)?\s*(?:\\mid\b|\||:)(.*)\\\}\s*$ ⇒ \2   # \{x\mid x>0\} = x>0
\\reals\s*(?:\\setminus|-)\s*\\\{([^{},]*)\\\} ⇒ x\\ne\1 # \R\setminus\{0\} = (-∞,0)\cup(0,∞)
\s*\bis the (?:final )?answer\b ⇒                         # \text{42 is the answer} = 42
TEXT\s*\{\s*([\dA-Z]*\d[\dA-Z]*)\s*\}\s*_ ⇒ \1_           # \text{A5}_{11} = A5_{11}
\\triangle\s*([A-Z]{3})(?![A-Za-z]) ⇒ TRIANGLE            # \triangle ACB = \triangle ABC
\\angle\s*([A-Z]{1,3})(?![A-Za-z]) ⇒ ANGLE                # \angle ABC = \angle CBA
([_^])\s*\{\s*(\w)\s*\} ⇒ \1\2                            # \sum_{k}^{n} k = \sum_k^n k
\\(mathbf|boldsymbol|bm)\s*\{\s*([a-zA-Z])\s*\} ⇒ \\\1 \2 # \mathbf{a}\times b = \mathbf a\times b
TEXT\s*\{(IN*)\} ⇒ QUOTED                                 # 5\text{ cm} = 5 cm
\\begin\s*\{(cases|aligned|align\*?|gathered|split)\}(.*?)\\end\s*\{\1\} ⇒ ROWS # LINES = x=1,y=2
"""
_SHORTHAND = {
    "TEXT": rf"\\(?:{_TEXT})",
    "FRAC": r"\\(?:[dtc]|nice|s|flat)?frac",
    "ORD": r"(?:st|nd|rd|th)",
    "IN": r"(?:[^{}]|\{[^{}]*\})",  # inside braces, one more level deep
    "DIFF": r"(?:d|\\(?:mathrm|text|rm)\s*\{?\s*d\s*\}?)\s*",
    "MATRIX": "[pbB]?matrix|smallmatrix",
    "LINES": r"\begin{aligned}x&=1\\y&=2\end{aligned}",
}


def _mixed(m):
    return f"({m[1]}+{m[2]}/{m[3]})" if int(m[2]) < int(m[3]) else m[0]


def _repeating(m):
    """Of 0.1(6): (16 - 1) / 90."""
    whole, first, period = m[1] or "0", m[2], m[3]
    top = int(whole + first + period) - int(whole + first)
    return f"({top}/{'9' * len(period)}{'0' * len(first)})"


def _rows(m):
    """Rows of equations are a list; rows with conditions a set of (value, condition)."""
    rows = [row for row in (row.strip(" ,.\n") for row in m[2].split("\\\\")) if row]
    if m[1] != "cases" or "&" not in m[2]:
        return ",".join(row.replace("&", "") for row in rows)
    rows = [re.sub(r'"(?:if|for|when)"|,', " ", row).replace("&", ",") for row in rows]
    return r"\{" + ",".join(f"({row})" for row in rows) + r"\}"


_REPLACEMENTS = {
    "MIXED": _mixed,
    "REPEATING": _repeating,
    "ROWS": _rows,
    "DIGITS": lambda m: re.sub(r"\D", "", m[0]),
    "TRIANGLE": lambda m: f'"triangle {"".join(sorted(m[1]))}"',
    "ANGLE": lambda m: f'"angle {min(m[1], m[1][::-1])}"',
    "QUOTED": lambda m: re.sub("[A-Za-z]+", r'"\g<0>"', f" {m[1]} "),
}
_RULES, EXAMPLES = [], []  # [(pattern, replacement)], texts
for _line in _RULE_TABLE.strip().splitlines():
    _rule, _, _example = _line.rpartition(" # ")
    _pattern, _, _new = _rule.partition(" ⇒")
    for _name, _meaning in _SHORTHAND.items():
        _pattern = _pattern.replace(_name, _meaning)
    _new = _new.strip().replace(r"\x20", " ")
    _RULES.append((re.compile(_pattern, re.S), _REPLACEMENTS.get(_new, _new)))
    EXAMPLES.append(_example.strip().replace("LINES", _SHORTHAND["LINES"]))
_PLAIN_RULES = [(p, new) for p, new in _RULES if not re.match(r"\\\\|\\\{", p.pattern)]
_LABEL = re.compile(  # "The answer is" 42, "Total": 42, "Number of apples": 42, "There are" 42
    r'^\s*(?:(?:"[a-z]{2,}"\s*)+:(?=\s*[^"\s])|(?:"(?:so|thus|hence|there|are|we|get|have)"[\s,]*)+'
    r'|(?:"?the"?\s+)?(?:"?(?:final|correct)"?\s+)?"?(?:answer|total|result|solution|sum|value|product'
    r'|difference|area|perimeter|volume|length|number|cost)"?\s*(?::|"?is\b"?))',
    re.I,
)
_DOMAIN = re.compile(  # what may follow an answer: for any c; where k is an integer; k\in\mathbb{Z}
    r',?\s*"?(?:for|where|with)"?\s+"?(?:any|all|every|each|some|integers?|real|constant|natural|'
    r'positive|[a-z])"?(?![A-Za-z(]).*$'
    r"|[,(]\s*[a-zA-Z]\s*(?:\\in\b|∈)\s*\\(?:set[A-Z]|reals)\s*\)?\s*$",
    re.S,
)
_DOMAINS = _pairs(r"setZ=Z integer=Z setN=N natural=N reals=R real=R")
_REMARK = re.compile(r"^(.*?\S)((?:\s|\\q?quad|\\[,; ])*)\(([^()]*)\)[\s.]*$", re.S)
_JOINED = re.compile(  # 1,234 is one number, but not inside (1,234)
    r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)(?![^()\[\]]*?(?:[)\]]|\\\}))"
)
_TOKEN = re.compile(
    r"""(?P<based>(?:\d[\dA-Z]*|[A-Z]+\d[\dA-Z]*)(?:\.[\dA-Z]+)?\s*_\s*(?:\{\s*\d\d?\s*\}|\d\d?))
    |(?P<num>\d+\.?\d*(?!\.\.)|\.\d+)|(?P<op>\\\\|\\[{}%]|\*\*|<=|>=|!=|==|\.\.\.)
    |\\(?P<cmd>[a-zA-Z]+)|\\.|"(?P<text>[a-zA-Z ]+)"|(?P<word>[A-Za-z]+'*)|["`]|\s+|(?P<op2>.)""",
    re.X | re.S | re.A,
)
_SYLLABLE = re.compile("(?![abc]{3})[b-df-hj-np-tvw][aeiou][b-df-hj-np-tvw]")  # tom is not t o m


class _Unreadable(Exception):
    """Outside the grammar or beyond a bound."""


def _rewrite(text):
    """(text after the rules, domain of its variable or None): without labels, remarks and
    conditions."""
    text = text if text.isascii() else _ascii(text)
    for pattern, new in _RULES if "\\" in text else _PLAIN_RULES:
        text = pattern.sub(new, text)
    text, domain = _LABEL.sub("", text).strip(), None
    if (m := _REMARK.match(text)) and _is_remark(*m.groups()):
        text = m[1]
    if (m := _DOMAIN.search(text)) and m.start():
        text = text[: m.start()]
        domain = next((kind for word, kind in _DOMAINS.items() if word in m[0]), None)
    return text, domain


def _is_remark(before, space, inside):
    """(rounded), (or 0.5), (since 2+3=5), (units), (x>0); not f(x>0), (5 million), 3 (mod 5)."""
    words = {word.lower() for word in re.findall(r"(?<!\\)\b[A-Za-z]{2,}", inside)}
    known = {*_SCALES, *_NUMBERS, *_OPERATOR_WORDS, *_FUNCTIONS, "sqrt", "pi"} - {"or", "and"}
    if not words or words & known:
        return bool(space and re.search(r"[<>≠=]|\\(?:[gl]eq?|neq?|[gl]t)\b", inside))
    return not re.search(r"[-+*/^_=(,]$|\\[a-z]+$", before)


@lru_cache(None)
def _units():
    """{name: (unit, dimension or unit, factor)}"""
    table = {noun: (noun, noun, Fraction(1)) for noun in _NOUNS.split()}
    for line in _UNITS.splitlines():
        dimension, _, units = line.partition(":")
        for names in map(str.split, units.split(",")):
            factor = Fraction(1) if dimension == "-" or len(names) < 2 else names.pop(1)
            unit = names[0], names[0] if dimension == "-" else dimension, Fraction(factor)
            table |= dict.fromkeys(names, unit)
    return table


@lru_cache(4096)
def _unit(word):
    """(unit, dimension, factor) of a word, or None. Single letters keep their case: m is not M."""
    word = _IRREGULAR.get(word.lower(), word)
    low = word.lower() if len(word) > 1 else word
    endings = {"": "", "s": "", "es": "", "ies": "y"}
    forms = [low.removesuffix(end) + new for end, new in endings.items() if low.endswith(end)]
    found = (_units().get(form) for form in [word, *forms] if len(form) > 1 or form == word)
    return next(filter(None, found), None)


def _tokens(text, join):
    r"""List of (kind, value); kinds: num, var, word, fn, op, cmd (an unknown command) and letter (a
    variable or unit from inside \text). `join`: 1,234 is one number."""
    text = _JOINED.sub(lambda m: m[0].replace(",", ""), text) if join else text
    tokens = []
    for m in _TOKEN.finditer(text):
        kind, value = m.lastgroup, m[m.lastgroup or 0]
        if kind == "based":
            digits, base = re.sub(r"[\s{}]", "", value).split("_")
            (whole, _, part), base = digits.partition("."), int(base)
            if not 2 <= base <= 36 or max(int(c, 36) for c in whole + part) >= base:
                raise _Unreadable("a digit does not fit the base")
            tokens.append(("num", Fraction(int(whole + part, base), base ** len(part))))
        elif kind == "num":
            tokens.append(("num", Fraction(int(value) if value.isdigit() else value)))
        elif kind in ("cmd", "text", "word"):
            tokens += _name_tokens(value, kind)
        elif kind:
            is_unit = not value.isascii() and _unit(value)
            tokens.append(("word", value) if is_unit else ("op", _SAME.get(value, value)))
    separators = (("op", ","), ("op", "or"))
    following = zip(tokens, [*tokens[1:], None], strict=False)
    tokens = [t for t, after in following if not (t == separators[0] and after in separators)]
    while tokens and tokens[-1] in [("op", sign) for sign in (".", ",", ":", r"\\")]:
        tokens.pop()
    return tokens


def _name_tokens(run, kind):
    r"""Tokens of a command or of a run of letters. Outside \text two or three small letters that
    are no word or unit are one variable each; dx is one; capitals are points."""
    low, name = run.lower(), _SAME.get(run, run)
    if kind == "cmd":
        kinds = (("fn", _FUNCTIONS), ("var", _NAMES), ("op", _SAME.values()))
        known = next((kind for kind, names in kinds if name in names), "cmd")
        return [] if name in _DECORATION else [(known, name)]
    if " " in run:  # angle ABC
        return [("word", run)]
    if len(run) == 1:
        return [("letter" if kind == "text" else "var", run)]
    if low in _OPERATOR_WORDS:
        return [("op", _OPERATOR_WORDS[low])]
    if name in _FUNCTIONS:
        return [("fn", name)]
    if kind == "word" and name in ("pi", "infty", "sqrt", "binom"):
        return [("var" if name in _NAMES else "op", name)]
    short = len(run.rstrip("'")) <= 3 and not _SYLLABLE.fullmatch(run)
    known = low in _SHORT_WORDS or low in _NUMBERS or low in _SCALES or _unit(run)
    if run.isupper() and short and not known:
        return [("var", letter) for letter in run]
    if kind == "text" or known or not short or run.istitle():
        return [("word", low)]
    if run[0] == "d" and len(run) == 2:
        return [("var", run)]
    return [("var", letter) for letter in re.findall("[A-Za-z]'*", run)]


def _number_in_words(tokens):
    """one hundred five, twenty five, 5 million: a Fraction, or None."""
    total = group = Fraction(0)
    for i, (kind, value) in enumerate(tokens):
        number = _NUMBERS.get(value) if kind == "word" else None
        if kind == "num" and i == 0:
            group = value
        elif number is not None and group % (100 if number > 9 else 10) == 0:
            group += number
        elif value in _PARTS and i and i == len(tokens) - 1:
            return (total + group) / _PARTS[value]
        elif kind == "word" and value == "hundred":
            group = (group or 1) * 100
        elif kind == "word" and value in _SCALES:
            total, group = total + (group or 1) * _SCALES[value], Fraction(0)
        else:
            return None
    return total + group if any(kind == "word" for kind, _ in tokens) else None


# --- the parser: lists, relations and sides are split at their signs, sums are read by descent ---

_CLOSERS = {"(": ")]", "[": ")]", "{": "}", r"\{": (r"\}",), "|": "|", "⟦": "⟧", "⌊": "⌋", "⌈": "⌉"}
_BRACKETS = {*_CLOSERS, ")", "]", "}", r"\}", "⟧", "⌋", "⌉"}
_ZERO, _ONE, _MINUS_ONE = Fraction(0), Fraction(1), ("num", Fraction(-1))
_EXPRESSIONS = set("num var + * inv ^ ! ° % mod binom call".split())


def _brackets(tokens):
    """{index of an opening bracket: index of its closing one}; a lone bar is no bracket."""
    stack, found = [], {}
    for i, (kind, value) in enumerate(tokens):
        if kind != "op" or value not in _BRACKETS:
            continue
        if value in _CLOSERS and not (value == "|" and stack and tokens[stack[-1]][1] == "|"):
            stack.append(i)
            continue
        while stack and value != "|" and tokens[stack[-1]][1] == "|":
            stack.pop()
        if not stack or value not in _CLOSERS[tokens[stack[-1]][1]]:
            raise _Unreadable("a bracket without its other")
        found[stack.pop()] = i
    if any(tokens[i][1] != "|" for i in stack):
        raise _Unreadable("a bracket is not closed")
    return found


def _split(tokens, signs):
    """Pieces of a token list between signs outside brackets, and the signs."""
    cuts = [i for i, (kind, value) in enumerate(tokens) if kind == "op" and value in signs]
    if not cuts:
        return [tokens], cuts
    spans = _brackets(tokens).items()
    cuts = [i for i in cuts if not any(start < i < end for start, end in spans)]
    starts, ends = [0, *(i + 1 for i in cuts)], [*cuts, len(tokens)]
    pieces = [tokens[start:end] for start, end in zip(starts, ends, strict=True)]
    return pieces, [tokens[i][1] for i in cuts]


def _answer(tokens, depth, strict=True):
    """Tree of a list of items; `strict`: text is refused, as inside brackets."""
    if depth > MAX_DEPTH:
        raise _Unreadable("too deep")
    pieces, signs = _split(tokens, (",", "or"))
    items = tuple(_item(piece, depth, strict) for piece in pieces)
    return ("list", "or" if set(signs) == {"or"} else ",", items) if signs else items[0]


def _item(tokens, depth, strict):
    pieces, signs = _split(tokens, "=≈<>≤≥≠∈:≡")
    last, modulo = _split(pieces[-1], ("pmod", "mod") if "≡" in signs else ("pmod",))
    if len(modulo) == 1:  # x ≡ 2 (mod 6)
        pieces[-1:] = last
    sides = tuple(_side(piece, depth, strict) for piece in pieces)
    return ("mod" if modulo else "rel", "".join(signs), sides) if modulo or signs else sides[0]


def _side(tokens, depth, strict):
    kinds = [kind for kind, _ in tokens]
    try:
        parts, signs = _split(tokens, ("∪",))
        if signs:
            return ("union", "", tuple(_Sum(part, depth).whole() for part in parts))
        has_words = "word" in kinds or "letter" in kinds
        return _quantity(tokens, depth) if has_words else _Sum(tokens, depth).whole()
    except _Unreadable:
        if "word" in kinds and set(kinds) <= {"word", "var", "letter", "num"}:
            return ("words", " ".join(str(value) for _, value in tokens))
        if strict:
            raise
        return ("text", tuple(tokens))


def _quantity(tokens, depth):
    """A number in words, or a value and its unit. Several add up: 2 hours 30 minutes are 150
    minutes."""
    number = _number_in_words(tokens)
    if number is not None:
        return ("num", number)
    found, parts, start, i = _brackets(tokens), [], 0, 0
    while i < len(tokens):
        unit, end = _unit_at(tokens, i) if i > start else (None, i)
        if unit:
            number = _number_in_words(tokens[start:i])
            value = _Sum(tokens[start:i], depth).whole() if number is None else ("num", number)
            parts.append((value, unit))
            start = i = end
        i = i if unit else found.get(i, i) + 1
    if len(parts) < 2 and start in (0, len(tokens)):
        return ("quantity", *parts[0]) if parts else _Sum(tokens, depth).whole()
    units = [_unit(unit[0][0]) for _, unit in parts if unit[0][1:] == (1,)]
    sizes = [size for _, dimension, size in units if dimension == units[0][1]]
    is_plain = start == len(tokens) and all(tree[0] == "num" for tree, _ in parts)
    if not is_plain or len(sizes) < len(parts) or sizes != sorted(set(sizes), reverse=True):
        raise _Unreadable("several quantities")
    total = sum(tree[1] * size for (tree, _), size in zip(parts, sizes, strict=True))
    return ("quantity", ("num", total / sizes[-1]), parts[-1][1])


def _unit_at(tokens, i):
    """(((unit, power), ...), index after it) of a unit that starts at i: km/h, m s^{-2}, square
    feet."""
    unit, sign, power = {}, 1, 1
    while i < len(tokens):
        kind, value = tokens[i]
        after = tokens[i + 1] if i + 1 < len(tokens) else ("end", "")
        more = unit and after[0] in ("word", "letter", "var") and _unit(after[1])
        if kind == "op" and value in ("/", "*", "×") and more:
            sign = -1 if value == "/" else 1
        elif kind == "word" and value in _POWERS:
            power = _POWERS[value]
        elif kind == "word" and value == "per":
            sign = -1
        elif kind == "word" and value in _ADJECTIVES and after[0] == "word":
            pass
        elif known := (kind in ("word", "letter") or kind == "var" and unit) and _unit(value):
            shown = "".join(str(value) for _, value in tokens[i + 1 : i + 6])  # each is one sign
            if exponent := re.match(r"\^(?P<braced>\{)?(-?\d)(?(braced)\})", shown):
                power, i = int(exponent[2]), i + len(exponent[0])
            unit[known[0]] = unit.get(known[0], 0) + sign * power
            sign, power = 1, 1
        else:
            break
        i += 1
    return tuple(sorted(unit.items())), i


class _Sum:
    """Recursive descent over the tokens of one side. Trees: (num, q), (var, name), (+, signs,
    parts), (*, factors), (inv, x), (^, x, y), (!, x), (°, x), (%, x), (mod, x, y), (binom, n, k),
    (call, name, x), (apply, name, x), (set, "", items), (seq, brackets, items), (rows, "", items),
    (cells, "", items)."""

    def __init__(self, tokens, depth):
        self.tokens, self.at, self.depth, self.found = tokens, 0, depth, _brackets(tokens)

    def whole(self):
        tree = self.sum()
        if self.at < len(self.tokens):
            raise _Unreadable("something is left")
        return tree

    def peek(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self, *signs):
        kind, value = self.peek()
        self.at += (found := kind == "op" and value in signs)
        return value if found else None

    def sum(self):
        parts, signs = [self.product()], ""
        while sign := self.take("+", "-"):
            signs += sign
            parts.append(self.product())
        return ("+", signs, tuple(parts)) if signs else parts[0]

    def signed(self, read):
        negative = False
        while sign := self.take("+", "-"):
            negative ^= sign == "-"
        return ("*", (_MINUS_ONE, read())) if negative else read()

    def product(self):
        factors = [self.signed(self.power)]
        while True:
            kind, value = self.peek()
            starts = kind in ("num", "var", "fn", "letter") or value in ("frac", "binom", "sqrt")
            if sign := self.take("*", "×", "/"):
                factor = self.signed(self.power)
                factors.append(("inv", factor) if sign == "/" else factor)
            elif self.take("mod"):
                return ("mod", _ordered(factors), self.product())
            elif not starts and self.at not in self.found:
                return _ordered(factors)
            elif kind == self.tokens[self.at - 1][0] == "num":
                raise _Unreadable("two numbers side by side")
            else:
                factors.append(self.power())

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
        elif kind in ("var", "letter"):
            tree = self.name(value)
        elif kind == "fn":
            tree = self.call(value)
        elif self.at - 1 in self.found:
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

    def name(self, value):
        """x, x_1, f(x), f^{-1}(x), P(A|B), Δx"""
        if value == "Delta" and self.peek()[0] == "var":
            value, self.at = value + self.peek()[1], self.at + 1
        applied = value.rstrip("'") in _APPLIED
        capital = value[:1] in "pq" or value[:1].isupper() and len(value.rstrip("'")) == 1
        if self.take("_"):
            value = f"{value}_{self.atom()}"
        start, named = self.at, value
        if applied and self.take("^"):
            named = f"{value}^{self.signed(self.atom)}"
        if self.peek() == ("op", "("):
            inside = self.tokens[self.at + 1 : self.found[self.at]]
            signs = {sign for kind, sign in inside if kind == "op"}
            if applied or capital and (len(inside) == 1 or signs & set(",|<>=≤≥")):
                self.at = self.found[self.at] + 1
                argument = _answer(inside, self.depth, strict=False)
                plain = argument[0] in _EXPRESSIONS
                return ("call", named, argument) if plain else ("var", f"{named}{argument}")
        self.at = start
        return ("var", value)

    def group(self, opener):
        """What stands between the bracket before `at` and the one that closes it."""
        end = self.found[self.at - 1]
        inside, both, self.at = self.tokens[self.at : end], opener + self.tokens[end][1], end + 1
        if opener == "⟦":
            rows = [_split(row, ("&",))[0] for row in _split(inside, (r"\\",))[0]]
            cells = [tuple(_answer(cell, self.depth) for cell in row) for row in rows]
            return ("rows", "", tuple(("cells", "", row) for row in cells))
        if opener == r"\{" and not inside:
            return ("var", "emptyset")
        tree = _answer(inside, self.depth)
        items = tree[2] if tree[0] == "list" else (tree,)
        if opener == r"\{" or (opener == "{" and len(items) > 1):
            return ("set", "", items)
        if len(items) == 1 and both in ("()", "[]", "{}"):
            return tree
        if len(items) == 1 and opener in "|⌊⌈":
            return ("call", {"|": "abs", "⌊": "floor", "⌈": "ceil"}[opener], tree)
        return ("seq", both, items)

    def call(self, name):
        """sin x, sin^2 x, log_2 x, sin(x): a bare argument ends at a sign, a word or the next
        function."""
        base, power = (self.signed(self.atom) if self.take(sign) else None for sign in "_^")
        bracketed = self.peek() in (("op", "("), ("op", "["), ("op", "{"))
        factors = [self.atom() if bracketed else self.signed(self.power)]
        more = (("op", "frac"), ("op", "sqrt"))
        while not bracketed and (self.peek()[0] in ("num", "var") or self.peek() in more):
            factors.append(self.power())
        if power == ("*", (_MINUS_ONE, ("num", 1))) and "arc" + name in _FUNCTIONS:
            name, power = "arc" + name, None
        tree = ("call", name, ("*", tuple(factors)))
        if base is not None:
            tree = ("*", (("call", "ln", tree[2]), ("inv", ("call", "ln", base))))
        return tree if power is None else ("^", tree, power)


def _ordered(factors):
    """The product; capitals keep their order, as points (AB) and matrices (A^{-1}B) need it."""
    letters, others = [], []
    for factor in factors:
        name = factor[1] if factor[0] == "var" else factor[1][1] if factor[0] == "^" else ""
        capital = isinstance(name, str) and len(name) == 1 and name.isupper()
        (letters if capital else others).append(factor)
    if len(set(letters)) > 1:
        shown = [f[1] if f[0] == "var" else f"{f[1][1]}^{f[2]}" for f in letters]
        factors = [*others, ("var", "".join(shown))]
    return ("*", tuple(factors)) if len(factors) > 1 else factors[0]


@lru_cache(maxsize=4096)
def _read(text, join):
    """[(tokens, tree, domain)] of an answer: as it stands; (B) 5 also as 5 and as B; 5 m as 5
    metres."""
    try:
        text, domain = _rewrite(text)
        tokens = _tokens(text, join)
    except _Unreadable:
        return ()
    choices, values = [tokens], [str(value) for _, value in tokens[:3]] + ["", "", ""]
    skip = 3 if values[0] + values[2] == "()" else 2 if values[1] in tuple(".):") else 0
    marked = skip and len(tokens) > skip and re.fullmatch("[A-J]", values[skip - 2])
    if marked and tokens[skip][1] not in tuple("=+*/^_!,<>∪"):
        choices += [tokens[skip:], [("var", values[skip - 2])]]
    unit = r"(-?[\d.,/]+)(?:\s|\\[,;: ])+([mshgLNJWVKAC](?:\s*[*/]\s*[mshg](?:\^\{?-?\d\}?)?)*)"
    if m := re.fullmatch(unit, text):
        letters = re.sub("[A-Za-z]", r'"\g<0>"', m[2])
        choices.append(_tokens(f"{m[1]} {letters}", join))
    crossed = ("op", "×") in tokens and re.search(r"\\(?:mathbf|boldsymbol|bm)\b", text)
    return [(tuple(c), None if crossed else _tree(c), domain) for c in choices if c]


def _tree(tokens):
    """The tree of an answer, or None. a ± b is read twice, and is the list a + b, a - b."""
    shown = [t for t in tokens if t != ("op", "¤")]
    shown = shown[shown[:1] == [("op", "≈")] :]
    if len(shown) < len(tokens) and not any(kind == "word" for kind, _ in shown):
        shown.append(("word", "dollar"))
    turned = [(kind, {"±": "-", "∓": "+"}.get(value, value)) for kind, value in shown]
    shown = [(kind, {"±": "+", "∓": "-"}.get(value, value)) for kind, value in shown]
    try:
        plus = _answer(shown, 0, strict=False)
        minus = plus if turned == shown else _answer(turned, 0, strict=False)
    except _Unreadable:
        return None
    if plus == minus:
        return plus
    kind = plus[0] if plus[0] in ("list", "set") else ""
    pairs = zip(plus[2], minus[2], strict=True) if kind else [(plus, minus)]
    return (kind or "list", ",", tuple(item for pair in pairs for item in dict.fromkeys(pair)))


# --- values ---


class _Point(dict):
    """Values of the constants, and of each variable a random one on first use; counts the work of
    the arithmetic."""

    def __init__(self, seed, signs, work):
        super().__init__({"pi": math.pi, "e": math.e, "i": 1j}, **signs)
        self.seed, self.work, self.free = seed, work, False

    def __missing__(self, name):
        if name in ("infty", "emptyset", "reals"):
            raise _Unreadable(f"{name} is no number")
        rng, self.free = random.Random(f"{self.seed} {name}"), True
        sign = 1 if self.seed < 6 else rng.choice((-1, 1))
        self[name] = sign * Fraction(rng.randint(500, 6000), 997)
        return self[name]

    def bounded(self, value):
        bits = sum(map(int.bit_length, value.as_integer_ratio())) if _is_exact(value) else 1
        self.work[0] -= bits + 50
        if bits > 2 * MAX_BITS or self.work[0] < 0:
            raise _Unreadable("too large")
        return value


def _is_exact(value):
    return isinstance(value, Fraction)


def _value(tree, point):
    """Value of an expression at a point: a Fraction where it is rational there, else a float or
    complex."""
    kind, *parts = tree
    if kind in ("num", "var"):
        return point.bounded(parts[0] if kind == "num" else point[parts[0]])
    if kind in ("+", "*"):
        total = _ONE if kind == "*" else _ZERO
        signs = "+" + parts[0] if kind == "+" else "*" * len(parts[0])
        for sign, part in zip(signs, parts[-1], strict=True):
            value = _value(part, point)
            value = -value if sign == "-" else value
            total = point.bounded(total * value if sign == "*" else total + value)
        return total
    if kind == "call":
        return _call(*parts, point)
    if kind not in _EXPRESSIONS:
        raise _Unreadable(f"{kind} inside an expression")
    values = [_value(part, point) for part in parts]
    if kind in ("^", "inv"):
        return point.bounded(_power(*values) if kind == "^" else 1 / values[0])
    if kind in ("°", "%"):
        return point.bounded(values[0] * point[kind])
    if not all(_is_exact(v) and v.denominator == 1 for v in values):
        raise _Unreadable("a whole number is needed")
    if kind == "mod":
        return values[0] % values[1]
    if not all(0 <= v <= (2200 if kind == "!" else MAX_BITS) for v in values):
        raise _Unreadable("factorial of what is no small whole number")
    function = math.factorial if kind == "!" else math.comb
    return point.bounded(Fraction(function(*map(int, values))))


def _call(name, argument, point):
    outer, free = point["°"], point.free
    point["°"] = math.pi / 180 if name in _TRIG else outer  # an angle in degrees is always one
    point.free = False
    value = _value(argument, point)
    constant, point.free, point["°"] = not point.free, point.free or free, outer
    if name == "abs":
        return abs(value)
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](complex(value))
    if name not in ("floor", "ceil") or not constant:  # unknown, or the same at too many points
        key = str(value) if _is_exact(value) else f"{complex(value):.9g}"
        return point[f"{name}({key})"]
    if isinstance(value, complex) or abs(value) > 1e9:
        raise _Unreadable("no real number")
    return Fraction(getattr(math, name)(value))


def _power(base, exponent):
    whole = getattr(exponent, "denominator", 0) == 1
    root_of = exponent.denominator if _is_exact(exponent) else 0
    if _is_exact(base) and (whole or root_of == 2 and base >= 0):
        if base == 0 and exponent <= 0:
            raise ZeroDivisionError
        bits = max(part.bit_length() for part in base.as_integer_ratio())
        if abs(base) != 1 and abs(exponent) * bits > MAX_BITS:
            raise _Unreadable("too large")
        root = base if whole else Fraction(*map(math.isqrt, base.as_integer_ratio()))
        if whole or root * root == base:
            return root ** (exponent.numerator if abs(base) != 1 else exponent.numerator % 2)
    real = None if complex(base).imag else complex(base).real
    if real is None or isinstance(exponent, complex) or real < 0 and not root_of % 2:
        value = complex(base) ** complex(exponent)
    elif real < 0 and not whole:  # the real cube root: that of -8 is -2
        value = (-1) ** exponent.numerator * (-real) ** float(exponent)
    else:
        value = real ** float(exponent)
    if value == 0 and base != 0:
        raise OverflowError("underflow")
    return value


def _names(tree):
    """Names of the variables in a tree."""
    if tree[0] == "var":
        return {tree[1]}
    parts = [part for part in tree[1:] if isinstance(part, tuple) and part]
    parts = [sub for part in parts for sub in ([part] if isinstance(part[0], str) else part)]
    return {name for part in parts for name in _names(part)}


# --- the same? ---


def _is_name(tree):
    """x, f(2), AB, |AB|, NO/BO, (x, y), words, text: what may stand before "=" as the name of a
    value."""
    kind = tree[0]
    if kind == "*" and any(part[0] == "inv" for part in tree[1]):
        return all(_is_name(part[1] if part[0] == "inv" else part) for part in tree[1])
    if kind == "call":
        return tree[1] not in _FUNCTIONS and (tree[1] != "abs" or str(tree[2][1]).isupper())
    if kind in ("*", "seq"):
        return _is_name(tree[-1][0]) and all(_is_name(p) or p[0] == "num" for p in tree[-1])
    return kind in ("words", "text") or kind == "var" and tree[1] not in ("infty", "reals")


def _sides(tree):
    """Values that a chain `x = a = b` gives for x; () for another relation. What follows ≈ is
    dropped."""
    _, signs, parts = tree
    if re.fullmatch(":=:?", signs) and _is_name(parts[0]) and _is_name(parts[1]):  # A:B = 7:32
        return (("rel", ":", parts[2:]) if signs[2:] else parts[2],)
    start = int(_is_name(parts[0]))
    end = signs.find("≈", start) + 1
    return () if set(signs) - set("=≈∈") else parts[start : end or None]


def _close(a, b, free):
    long = not free and any(_is_exact(v) and v.denominator > 10**5 for v in (a, b))
    a, b = complex(a), complex(b)
    error = max(1e-13, (1e-9 if free else 1e-11) * max(abs(a), abs(b)))
    return not long and abs(a - b) <= error


def _is_real(value):
    return abs(complex(value).imag) <= 1e-12 * abs(value)


_TURN = str.maketrans("<>≤≥", "><≥≤")


@dataclass
class _Comparison:
    """Equality of trees. `signs`: what ° and % count for; `has_i`: complex values are meant;
    `work`: what is left."""

    signs: dict
    has_i: bool
    work: list

    def agree(self, left, right, ratio=False):
        """Equal at each random point where both exist; with `ratio`, with the same quotient, other
        than 0, at each."""
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
                exact = [_is_exact(a), _is_exact(b)]
                same = a == b if all(exact) else _close(a, b, point.free)
            except (ZeroDivisionError, OverflowError, ValueError):
                same = None  # outside the domain of one of them
            if same is False and (self.has_i or any(exact) or _is_real(a) or _is_real(b)):
                return False
            agreed += same is True
            if not point.free:
                return same is True
        return agreed >= 3

    def equal(self, left, right):
        if left == right:
            return True
        kinds = {left[0], right[0]}
        if "quantity" in kinds:  # where both have a unit, the same one
            same = len(kinds) == 2 or left[2] == right[2]
            return same and self.equal(*(t[1] if t[0] == "quantity" else t for t in (left, right)))
        if kinds == {"rel"} and self.equal_relations(left, right):
            return True
        if "rel" in kinds and kinds != {"rel"}:
            relation, other = (left, right) if left[0] == "rel" else (right, left)
            sides = _sides(relation)
            if sides and all(self.equal(side, other) for side in sides):
                return True
        if kinds & {"rel", "union"} or ("var", "reals") in (left, right):
            sets = self.as_set(left), self.as_set(right)
            if all(sets):
                return _same_set(*sets)
        if kinds == {"set"}:  # repeats do not count
            ways = (left[2], right[2]), (right[2], left[2])
            return all(any(self.equal(a, b) for b in ys) for xs, ys in ways for a in xs)
        if kinds <= {"list", "set"} or kinds == {"union"}:
            ordered = any(("text", (("op", "…"),)) in tree[2] for tree in (left, right))
            return (self.equal_all if ordered else self.equal_in_any_order)(left[2], right[2])
        if len(kinds) == 1 and kinds <= {"seq", "rows", "cells", "mod"}:
            return left[1] == right[1] and self.equal_all(left[2], right[2])
        structures = {"list", "set", "union", "seq", "rows", "cells", "words", "text", "rel"}
        return not kinds & structures and self.agree(left, right)

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
        """Part by part, in either direction; as equations whose differences vanish together; as
        values of one name."""
        turned = ("rel", left[1][::-1].translate(_TURN), left[2][::-1])
        either = (left, turned)[: 1 + (":" not in left[1])]
        if any(tree[1] == right[1] and self.equal_all(tree[2], right[2]) for tree in either):
            return True
        try:
            if left[1] == right[1] == "=":
                return self.agree(*(("+", "-", t[2]) for t in (left, right)), ratio=True)
        except _Unreadable:
            pass  # a side is no expression
        sides = _sides(left), _sides(right)
        for mine, theirs in ((sides[0], right), (sides[1], left)):
            if mine and mine[0][0] == "rel":  # A:B = 7:32 against 7:32
                return self.equal(mine[0], theirs)
        pairs = [(a, b) for a in sides[0] for b in sides[1]]
        return left[2][0] == right[2][0] and pairs and all(self.equal(*pair) for pair in pairs)

    def as_set(self, tree):
        """(name or None, sorted [(low, is it in, high, is it in), ...]) of intervals, or of
        inequalities in one name, with numbers as bounds; or None."""
        kind, rows = tree[0], []
        if tree == ("var", "reals"):
            return None, [(-math.inf, False, math.inf, False)]
        if kind == "seq" and len(tree[2]) == 2 and tree[1][0] in "([":
            low, high = map(self.number, tree[2])
            rows = [(low, tree[1][0] == "[", high, tree[1][1] == "]")]
            return None if None in rows[0] else (None, rows)
        if kind == "set":
            values = list(map(self.number, tree[2]))
            return None if None in values else (None, sorted((v, True, v, True) for v in values))
        if kind in ("union", "list"):
            parts = [self.as_set(part) for part in tree[2]]
            if not all(parts) or any(name != parts[0][0] for name, _ in parts):
                return None
            rows = sorted(row for _, part in parts for row in part)
            apart = all(a[2] <= b[0] for a, b in zip(rows, rows[1:], strict=False))  # means "or"
            return (parts[0][0], rows) if kind == "union" or parts[0][0] and apart else None
        signs, sides = tree[1:3] if kind == "rel" else ("", ())
        if signs == "∈" and _is_name(sides[0]):
            return (inner := self.as_set(sides[1])) and (sides[0], inner[1])
        if signs == "≠" and _is_name(sides[0]):
            value = self.number(sides[1])
            rows = [(-math.inf, False, value, False), (value, False, math.inf, False)]
            return None if value is None else (sides[0], rows)
        if re.fullmatch("[>≥]{1,2}", signs):
            signs, sides = signs[::-1].translate(_TURN), sides[::-1]
        if not re.fullmatch("[<≤]{1,2}", signs):
            return None
        values = [-math.inf, *map(self.number, sides), math.inf]
        if values.count(None) != 1 or len(sides) == 3 and values[2] is not None:
            return None
        at = values.index(None)
        name, slope, offset = self.linear(sides[at - 1])
        if not name:
            return None
        closed = [False, *(sign == "≤" for sign in signs), False]
        low, high = (
            ((values[i] - offset) / slope, closed[j]) for i, j in ((at - 1, at - 1), (at + 1, at))
        )
        return name, [low + high if slope > 0 else high + low]

    def number(self, tree, **names):
        """The real value of a constant, also an infinite one; None where there is none."""
        point = _Point(0, self.signs, self.work)
        point.update(infty=math.inf, **names)
        try:
            value = _value(tree, point)
            value = value if _is_exact(value) or not complex(value).imag else None
            return None if point.free else value
        except (ZeroDivisionError, OverflowError, ValueError, TypeError, _Unreadable):
            return None

    def linear(self, tree):
        """(name, a, b) of a x + b, or (None, 0, 0)."""
        if _is_name(tree):
            return tree, 1, 0
        names = _names(tree) - {"pi", "e", "i"}
        values = [self.number(tree, **dict.fromkeys(names, Fraction(x))) for x in (0, 1, 2, 7)]
        if len(names) != 1 or not all(map(_is_exact, values)):
            return None, 0, 0
        start, slope = values[0], values[1] - values[0]
        straight = slope and values[2:] == [start + 2 * slope, start + 7 * slope]
        return (("var", *names), slope, start) if straight else (None, 0, 0)


def _same_set(left, right):
    """The same name, where both have one, and the same intervals."""
    if left[0] and right[0] and left[0] != right[0] or len(left[1]) != len(right[1]):
        return False
    rows = list(zip(left[1], right[1], strict=True))
    if any(a[1::2] != b[1::2] for a, b in rows):
        return False
    ends = [(a[i], b[i]) for a, b in rows for i in (0, 2)]
    return all(a == b or math.isfinite(a - b) and _close(a, b, False) for a, b in ends)


_PLAIN = re.compile(r"-?(?:\d{1,300}(?:\.\d{1,300})?|\.\d{1,300})", re.A)


def same_answer(response: str, gold: str) -> bool:
    """Are two texts the same answer? Percent and degrees count as 1 on both sides, or as 1/100 and
    pi/180 on both."""
    response, gold = response.strip(), gold.strip()
    if response == gold:
        return True
    if _PLAIN.fullmatch(response) and _PLAIN.fullmatch(gold):
        return Fraction(response) == Fraction(gold)
    work = [MAX_WORK]
    return any(
        _same_reading(mine, theirs, work)
        for join in (True, False)[: 1 + ("," in response + gold)]
        for mine in _read(response, join)
        for theirs in _read(gold, join)[:1]
    )


def _same_reading(mine, theirs, work):
    (tokens, tree, domain), (gold_tokens, gold_tree, gold_domain) = mine, theirs
    if domain and gold_domain and domain != gold_domain:
        return False
    if tokens == gold_tokens or None in (tree, gold_tree):
        return tokens == gold_tokens
    both, readings = tokens + gold_tokens, [{"°": Fraction(1), "%": Fraction(1)}]
    if ("op", "°") in both or ("op", "%") in both:
        readings.append({"°": math.pi / 180, "%": Fraction(1, 100)})
    for signs in readings:
        try:
            if _Comparison(signs, ("var", "i") in both, work).equal(tree, gold_tree):
                return True
        except _Unreadable:
            pass  # beyond a bound: not equal in this reading
    return False


def is_value(text: str) -> bool:
    """Can an answer be read as something else than text?"""
    return any(tree and "'text'" not in repr(tree) for _, tree, _ in _read(text.strip(), True))


_PLACEHOLDERS = {"proof", "notfound", "not found", "n/a", "no answer", "null", "unknown"}


@lru_cache(4096)
def gold_fault(text: str) -> str:
    """Why a gold answer can never be matched, to follow "a math answer"; "" where it can."""
    if "####" in text or "\\boxed" in text:
        return "is the bare value, without #### or \\boxed"
    if re.sub(r"\\text\{(.*)\}", r"\1", text.strip().strip(".")).lower() in _PLACEHOLDERS:
        return "is a value, no placeholder"
    if len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", text)) > 12:
        return "is a value or a short text"
    return ""
