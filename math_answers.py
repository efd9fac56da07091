r"""When are two final answers of a mathematics problem the same?

    same_answer(r"\frac12", "0.5")                             # True
    same_answer("0<x<12.5", "(0,12.5)")                        # True: the same set of numbers
    same_answer(r"x\equiv 2\pmod 6", r"x\equiv 3\pmod 4")      # False

The reader knows the commands, functions, words and units in the tables below. What holds anything
else, or does not fit the grammar, is *text*: equal only to the same text without its decoration.

    answer   = item {("," | "or") item}                  1, 2    x=1 or x=2
    item     = side {("=" | "<" | "≡" ...) side}         x = 5    0<x<3    x≡2 (mod 6)
    side     = quantity {(":" | "∪") quantity} | words   3:4    (0,1)∪{3}
    quantity = sum [unit {number unit}]                  5 km/h    2 hours 30 minutes    12 apples
    words    = {word | number}                           not even    June 20    twenty-five
    sum      = product {("+" | "-") product}             x^2 - 2x
    product  = power {["*" | "/" | "mod"] power}         2x    3/4    17 mod 5
    power    = {"-"} atom {"^" atom | "!" | "°" | "%"}   -x^2    5!    90°
    atom     = number | name ["(" answer ")"] | frac atom atom | sqrt atom | function atom | group
    group    = "(" answer ")" | "[0,3)" | "{" answer "}" | "|" answer "|" | "⌊" answer "⌋" | matrix
    matrix   = row {"\\" row};  row = answer {"&" answer}

For example 2\frac{1}{3}\text{ hours} is rewritten to (2+1/3) "hours" and read as

    ("quantity", ("+", (2, ("*", (1, ("inv", 3))))), (("h", 1),))         # 2: ("num", Fraction(2))

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
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}  # words before a unit: its power
_POWERS |= dict.fromkeys("additional different distinct identical possible total".split(), 1)
_SHORT_WORDS = """all any ask if is it its may no odd of off old on one out per she sq cu the tie
to too two who you yes fri tue""".split()  # with _SYLLABLE's: else three variables


def _pairs(text):
    """{left: right} of left=right, separated by spaces."""
    return dict(pair.split("=", 1) for pair in text.split())


_IRREGULAR = _pairs("men=man women=woman children=child feet=foot people=person leaves=leaf")
_NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"""
_NUMBERS = {word: n if n < 20 else 10 * n - 180 for n, word in enumerate(_NUMBERS.split())}
_PARTS = {"half": 2, "thirds": 3, "third": 3, "fourths": 4, "fifths": 5, "tenths": 10}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3}
_SCALES |= {"million": 10**6, "billion": 10**9, "trillion": 10**12}
_OPERATORS = _pairs("""plus=+ minus=- times=* over=/ percent=% percentage=% pct=% degree=°
degrees=° and=, or=or""")
_TRIG = {"sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "cot": lambda z: 1 / cmath.tan(z)}
_TRIG |= {"sec": lambda z: 1 / cmath.cos(z), "csc": lambda z: 1 / cmath.sin(z)}
_FUNCTIONS = {**_TRIG, "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan}
_FUNCTIONS |= {"sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh, "exp": cmath.exp}
_FUNCTIONS |= {"log": cmath.log10, "lg": cmath.log10, "ln": cmath.log}
_GREEK = """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho
sigma sigma tau upsilon phi chi psi omega""".split()  # in Unicode's order; sigma has two forms
_NAMES = {*_GREEK, *map(str.capitalize, _GREEK), *(f"set{c}" for c in "CNPQRZ")}
_NAMES |= set("ell hbar infty emptyset varepsilon vartheta varphi varrho".split())
_APPLIED = set("f g h F G H zeta Gamma phi varphi psi sigma tau Phi".split())  # f(x) is no product
_SAME = _pairs(r"""times=× cdot=* ast=* bullet=* div=/ leq=≤ le=≤
leqslant=≤ leqq=≤ geq=≥ ge=≥ geqslant=≥ geqq=≥ lt=< gt=> ne=≠ neq=≠ approx=≈ thickapprox=≈ in=∈
cup=∪ pm=± mp=∓ lvert=| rvert=| vert=| mid=| langle=( rangle=) lbrack=[ rbrack=] lbrace=⦃ rbrace=⦄
\{=⦃ \}=⦄ lfloor=⌊ rfloor=⌋ lceil=⌈ rceil=⌉ infinity=infty inf=infty oo=infty varnothing=emptyset
degree=° percent=% \%=% **=^ ;=, colon=: equiv=≡ bmod=mod mod=mod pmod=pmod dots=… ldots=… cdots=…
dotsc=… ...=… land=, lor=or""")
_SAME |= {"<=": "≤", ">=": "≥", "!=": "≠", "==": "="}
_KINDS = dict.fromkeys(_SAME.values(), "op") | dict.fromkeys(_NAMES, "var")
_KINDS |= dict.fromkeys(_FUNCTIONS, "fn") | dict.fromkeys(("frac", "binom", "sqrt"), "built")
_TEXT = "text|mbox|hbox|textbf|textit|textrm|textsf|textnormal|texttt|mathrm|mathsf|operatorname"
_DECORATION = set(
    """left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr displaystyle textstyle
scriptstyle quad qquad enspace thinspace medspace thickspace negthinspace limits nolimits boxed
fbox framebox mathbf mathit mathcal boldsymbol bm bf rm it sf tt cal large Large LARGE huge Huge
normalsize small footnotesize scriptsize tiny underline emph mathop mathord strut checkmark square
blacksquare Box qed pounds euro hfill noindent centering ensuremath""".split()
).union(_TEXT.split("|"))
_UNICODE = _pairs(r"""−=- –=- —=- ‐=- ‑=- ‒=- ×=\times ·=* ⋅=* ∙=* ∗=* ÷=/ ∕=/ ⁄=/ ⩽=≤ ≦=≤ ⩾=≥ ≧=≥
∞=\infty √=\sqrt ∛=\sqrt[3] º=° ˚=° ′=' ’=' ∅=\emptyset ⟨=( ⟩=) 。=. 、=, …=\ldots ⋯=\ldots ℝ=\setR
ℤ=\setZ ℕ=\setN ℚ=\setQ ℂ=\setC ∣=| €= £= ¥= ✓= ✔= ✅= ☑= ∎= ■= □=""")
_UNICODE |= dict.fromkeys("\ufe0f\u200b\u20d7", "") | dict.fromkeys("\u00a0\u2009\u202f\u3000", " ")
_UNICODE |= {chr(0x3B1 + n): "\\" + name for n, name in enumerate(_GREEK)}
_UNICODE |= {chr(0x391 + n): "\\" + name.capitalize() for n, name in enumerate(_GREEK)}


def _ascii(text):
    """Plain digits, signs and brackets: full-width 12 is 12, x₁ is x_{1}, ½ is a fraction."""
    text = re.sub("(\\d)[\u0305\u0307]", r"\\overline{\1}", text)  # 0.3̅
    text = re.sub("[⁰¹²³⁴-⁹⁺⁻ⁿ]+", r"^{\g<0>}", text)
    text = re.sub("[₀-₉₊₋ₙᵢ]+", r"_{\g<0>}", text)
    shown = []
    for c in text:
        plain = str(unicodedata.decimal(c, unicodedata.normalize("NFKC", c)))
        if "⁄" in plain[1:]:
            plain = r"\frac{%s}{%s}" % tuple(plain.split("⁄"))
        plain = _UNICODE.get(c) or "".join(_UNICODE.get(part, part) for part in plain)
        shown.append(plain + " " if re.search(r"\\[a-zA-Z]+$", plain) else plain)
    return "".join(shown)


# --- rewriting rules: each with an example, two texts that become the same answer ---

_RULE_TABLE = r"""
\\\$ ⇒ ¤                                                  # \$5 ≠ 5\text{ cents}
[$~] ⇒ \x20                                               # $5$ = 5
\\(?:[dtcs]|nice|flat)(frac|binom)(?![a-z]) ⇒ \\\1        # \dfrac{3}{4} = 3/4
\^\s*\{?\s*(?:\\circ|\\degree|°)\s*\}? ⇒ °                # 90^{\circ} = 90°
(?<=\d)\s*\^\s*(?:DEG|\{\s*DEG\s*\}) ⇒ °                  # 45^{\text{o}} = 45°
°\s*([CF])(?![A-Za-z]) ⇒ ° "\1"                           # 25^\circ C = 25°\text{C}
(?<=\d)\s*\^?\s*(?:ORD|\{\s*ORD\s*\}) ⇒                   # 12^{\text{th}} = 12
\\(?:[hv]?phantom|[hv]space\*?|SHADE)\s*(?:\{[^{}]*\}|-) ⇒    # \textcolor{red}{5} = 5
(?<=[A-Za-z]{2})\.(?=\s) ⇒                                # 34\text{ sq. units} = 34
\b([aApP])\.\s?([mM])\b\.? ⇒ \1\2                         # 9 a.m. = 9 am
\\\\\s*\[\s*-?[\d.]+\s*[a-z]{2}\s*\] ⇒ \\\\               # ⟦1\\[4pt]2⟧ = ⟦1\\2⟧
\\begin\s*\{(?:MATRIX|array\}\s*\{[^{}]*)\} ⇒ ⟦           # \begin{array}{c}5\end{array} = ⟦5⟧
(?:\\\\\s*)?\\end\s*\{(?:MATRIX|array)\} ⇒ ⟧ # \begin{pmatrix}5\end{pmatrix} = ⟦5⟧
(?:(\{)|^)(IN*?)\\(over|choose)(?![a-z])(IN*)(?(1)\}|$) ⇒ OVER  # {4 \over 3} = 4/3
\^\s*\{?\s*\\prime\s*\}? ⇒ '                              # f^{\prime}(x) = f'(x)
(?<![\d.])(\d*)\.(\d*)\s*BAR(?:(\d*)\\dot\s*\{?(\d)\}?)? ⇒ REPEATING   # 0.\dot{1}\dot{2} = 12/99
(?<![\d.])(\d*)\.(\d*)\((\d+)\) ⇒ REPEATING               # 0.(3) = 1/3
(?<![\d.])\d{1,3}(?:(?:\{,\}|, ?\\! ?|\\[,;:! ] ?| |')\d{3})+(?!\d) ⇒ DIGITS    # 1\,722 = 1722
(?<![\w.^])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,4})(?![\w.]) ⇒ (\1*10^{\2})    # 1.5e4 = 15000
\\frac\s*(\d) ⇒ \\frac{\1}                                # \frac12 = 1/2
\\frac\s*(\{[^{}]*\})\s*(\d) ⇒ \\frac\1{\2}               # \frac{1}23 ≠ 1/23
(?<![\d.^_a-zA-Z])(?<!sqrt )(\d+)\s*\\frac\s*\{(\d+)\}\s*\{(\d+)\} ⇒ MIXED    # 2\frac{1}{3} = 7/3
(?<![\d^_.])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d) ⇒ MIXED       # 2 1/2 = 5/2
\\frac\s*\{\s*DIFF([a-z])\s*\}\s*\{\s*DIFF([a-z])\s*\} ⇒ \\frac{d\1}{d\2} # \frac{d y}{d x} = dy/dx
\b(\d[\d.]*) [a-z]+ (?:with|of) (\d[\d.]*)(?: [a-z]+)? each\b ⇒ \1*\2 # 3 bags of 4 pens each = 12
(?<=\d)\s*[xX]\s*10\s*\^ ⇒ *10^                            # 1.5 x 10^4 = 15000
\b(years?|feet|inches|miles|hours|days) (?:old|tall|long|away|wide|ago)\b ⇒ \1 # 9 years old = 9
\\frac\{\s*TEXT\{([a-z ]+)\}\}\{\s*TEXT\{(IN*)\}\} ⇒ \\text{\1/\2} # 5\frac{\text{km}}{\text{h}} = 5
\b(hundred(?= and )|\w+ty(?=-)|one(?=-)|two(?=-))(?:-| and )(?=[a-z]) ⇒ \1\x20 # sixty-two = 62
\bdivided by\b ⇒ over                                     # 6 divided by 3 = 2
(hours?|hr|feet|ft|days?)\s+and\s*\}?\s*(?=\d+\s*(?:TEXT\{\s*)?[mhi]) ⇒ \1\x20 # 1 hr and 5 min = 65
\((?:\s*|TEXT\s*\{\s*)\\?[bp]?mod\b(?:\s*\})?([^()]*)\) ⇒ \\pmod{\1} # x≡2 (mod 6) = x≡2\pmod6
(\\equiv.*?|≡.*?)\\b?mod\b ⇒ \1\\pmod                      # x\equiv 2\bmod 6 = x≡2\pmod 6
\b[Aa]ll (?:reals|real numbers)\b|\\R\b ⇒ \\setR\x20   # \R = (-∞,∞)
\\mathbb\s*\{?\s*([A-Z])\s*\}? ⇒ \\set\1\x20              # x\in\mathbb{Z} = x\in\mathbb Z
^\s*\\\{\s*([a-z])(?:\s*\\in\s*\\setR)?\s*(?:\\mid\b|\||:)(.*)\\\}\s*$ ⇒ \2    # \{x\mid x>0\} = x>0
\\setR\s*(?:\\setminus|-)\s*\\\{([^{},]*)\\\} ⇒ x\\ne\1   # \R\setminus\{0\} = (-∞,0)\cup(0,∞)
\s*\bis the (?:final )?answer\b ⇒                         # \text{42 is the answer} = 42
TEXT\s*\{\s*([\dA-Z]*\d[\dA-Z]*)\s*\}\s*_ ⇒ \1_           # \text{A5}_{11} = A5_{11}
\\triangle\s*([A-Z]{3})(?![A-Za-z]) ⇒ TRIANGLE            # \triangle ACB = \triangle ABC
\\angle\s*([A-Z]{1,3})(?![A-Za-z]) ⇒ ANGLE                # \angle ABC = \angle CBA
([_^]|\\(?:mathbf|boldsymbol|bm))\s*\{\s*(\w)\s*\} ⇒ \1 \2    # \sum_{k}^{n} k = \sum_k^n k
TEXT\s*\{(IN*)\} ⇒ QUOTED                                 # 5\text{ cm} = 5 cm
\\begin\s*\{(cases|aligned|align\*?|gathered|split)\}(.*?)\\end\s*\{\1\} ⇒ ROWS # LINES = x=1,y=2
((?:\d[\dA-Z]*|[A-Z]+\d[\dA-Z]*)(?:\.[\dA-Z]+)?)\s*_\s*(\{\s*\d\d?\s*\}|\d\d?) ⇒ BASED  # 12_5 = 7
^\s*LABEL ⇒                                               # \text{Total: }42 = 42
^(.*?\S)((?:\s|\\q?quad|\\[,; ])*)\(([^()]*)\)[\s.]*$ ⇒ REMARK    # 5 (rounded) = 5
(?<=.)(?:FOR) ⇒ DOMAIN                                    # k\pi, k\in\mathbb Z = k\pi
"""
_SHORTHAND = {
    "DEG": r"(?:o\b|TEXT\s*\{\s*o\s*\})",
    "ORD": r"(?:(?:st|nd|rd|th)\b|TEXT\s*\{\s*(?:st|nd|rd|th)\s*\})",
    "TEXT": rf"\\(?:{_TEXT})",
    "SHADE": r"(?:text)?color(?:box)?\s*(?:\[[^\]]*\])?",
    "IN": r"(?:[^{}]|\{[^{}]*\})",  # inside braces, one more level deep
    "BAR": r"\\(?:overline|bar|dot)\s*\{?(\d+)\}?",
    "DIFF": r"(?:d|\\(?:mathrm|text|rm)\s*\{?\s*d\s*\}?)\s*",
    "MATRIX": "[pbB]?matrix|smallmatrix",
    "LINES": r"\begin{aligned}x&=1\\y&=2\end{aligned}",
    "LABEL": r"""(?i:(?:"[a-z]{2,}"\s*)+:(?=\s*[^"\s])|(?:"(?:so|thus|hence|there|are|we|get|have)"
[\s,]*)+|(?:"?the"?\s+)?(?:"?(?:final|correct)"?\s+)?"?(?:answer|total|result|solution|sum|value
|product|difference|area|perimeter|volume|length|number|cost)"?\s*(?::|"?is\b"?))""",
    "FOR": r""",?\s*"?(?:for|where|with)"?\s+"?(?:any|all|every|each|some|integers?|real|constant
|natural|positive|[a-z])"?(?![A-Za-z(]).*$|[,(]\s*[a-zA-Z]\s*(?:\\in\b|∈)\s*\\set[A-Z]\s*\)?\s*$""",
}  # a meaning may run over several lines
_OVER = {"over": "frac", "choose": "binom"}
_DOMAINS = _pairs("setZ=Z integer=Z setN=N natural=N setR=R real=R")
_WORDS = {*_SCALES, *_NUMBERS, *_OPERATORS, *_FUNCTIONS, "sqrt", "pi"} - {"or", "and"}


def _repeating(m):
    """Of 0.1(6): (16 - 1) / 90."""
    whole, first, *period = m.groups("")
    start, period = (whole or "0") + first, "".join(period)
    return f"({int(start + period) - int(start)}/{'9' * len(period)}{'0' * len(first)})"


def _rows(m):
    """Rows of equations are a list; rows with conditions a set of (value, condition)."""
    rows = [row for row in (row.strip(" ,.\n") for row in m[2].split("\\\\")) if row]
    if m[1] != "cases" or "&" not in m[2]:
        return ",".join(row.replace("&", "") for row in rows)
    rows = [re.sub(r'"(?:if|for|when)"|,', " ", row).replace("&", ",") for row in rows]
    return r"\{" + ",".join(f"({row})" for row in rows) + r"\}"


def _based(m):
    """12_5 is 7; a digit that does not fit the base is left."""
    (whole, _, part), base = m[1].partition("."), int(m[2].strip("{} "))
    if not 2 <= base <= 36 or max(int(c, 36) for c in whole + part) >= base:
        return m[0]
    return f"({int(whole + part, base)}/{base ** len(part)})"


def _remark(m):
    """(rounded), (or 0.5), (since 2+3=5), (units), (x>0); not f(x>0), (5 million), 3 (mod 5)."""
    before, space, inside = m.groups()
    words = {word.lower() for word in re.findall(r"(?<!\\)\b[A-Za-z]{2,}", inside)}
    if words and not words & _WORDS:
        goes = not re.search(r"[-+*/^_=(,]$|\\[a-z]+$", before)
    else:
        goes = space and re.search(r"[<>≠=]|\\(?:[gl]eq?|neq?|[gl]t)\b", inside)
    return before if goes else m[0]


_REPLACEMENTS = {
    "MIXED": lambda m: f"({m[1]}+{m[2]}/{m[3]})" if int(m[2]) < int(m[3]) else m[0],
    "REPEATING": _repeating,
    "ROWS": _rows,
    "BASED": _based,
    "REMARK": _remark,
    "DOMAIN": lambda m: "∀" + next((kind for word, kind in _DOMAINS.items() if word in m[0]), ""),
    "OVER": lambda m: rf"\{_OVER[m[3]]}{{{m[2]}}}{{{m[4]}}}",
    "DIGITS": lambda m: re.sub(r"\D", "", m[0]),
    "TRIANGLE": lambda m: f'"triangle {"".join(sorted(m[1]))}"',
    "ANGLE": lambda m: f'"angle {min(m[1], m[1][::-1])}"',
    "QUOTED": lambda m: re.sub(r"(?<![\\A-Za-z])[A-Za-z]+", r'"\g<0>"', f" {m[1]} "),
}
_RULES, EXAMPLES = [], []  # [(pattern, replacement)], texts
for _line in _RULE_TABLE.strip().splitlines():
    _rule, _, _example = _line.rpartition(" # ")
    _pattern, _, _new = _rule.partition(" ⇒")
    for _name, _meaning in _SHORTHAND.items():
        _pattern = _pattern.replace(_name, _meaning.replace("\n", ""))
    _new = _new.strip().replace(r"\x20", " ")
    _RULES.append((re.compile(_pattern, re.S), _REPLACEMENTS.get(_new, _new)))
    EXAMPLES.append(_example.strip().replace("LINES", _SHORTHAND["LINES"]))
_PLAIN_RULES = [(p, new) for p, new in _RULES if not re.match(r"\\\\|\\\{", p.pattern)]
_JOINED = re.compile(  # 1,234 is one number, but not inside (1,234)
    r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)(?![^()\[\]]*?(?:[)\]]|\\\}))"
)
_TOKEN = re.compile(
    r"""(?P<num>\d+\.?\d*(?!\.\.)|\.\d+)|(?P<op>\\\\|\\[{}%]|\*\*|<=|>=|!=|==|\.\.\.)
    |\\(?P<cmd>[a-zA-Z]+)|\\.|"(?P<text>[a-zA-Z ]+)"|(?P<word>[A-Za-z]+'*)|["`]|\s+|(?P<op2>.)""",
    re.X | re.S | re.A,
)
_SYLLABLE = re.compile("(?![abc]{3})[b-df-hj-np-tvw][aeiou][b-df-hj-np-tvw]")  # tom is not t o m


class _Unreadable(ValueError):
    """Outside the grammar or beyond a bound."""


_UNIT = {noun: (noun, noun, Fraction(1)) for noun in _NOUNS.split()}  # name: unit, dimension, size
for _line in _UNITS.splitlines():
    _dimension, _, _units = _line.partition(": ")
    for _name, *_others in map(str.split, _units.split(",")):
        _size = Fraction(1 if _dimension == "-" else _others.pop(0))
        _unit_row = (_name, _name if _dimension == "-" else _dimension, _size)
        _UNIT |= dict.fromkeys([_name, *_others], _unit_row)


@lru_cache(4096)
def _unit(word):
    """(unit, dimension, size) of a word, or None. Single letters keep their case: m is not M."""
    word = _IRREGULAR.get(word.lower(), word)
    low = word.lower() if len(word) > 1 else word
    endings = {"": "", "s": "", "es": "", "ies": "y"}
    forms = [low.removesuffix(end) + new for end, new in endings.items() if low.endswith(end)]
    found = (_UNIT.get(form) for form in [word, *forms] if len(form) > 1 or form == word)
    return next(filter(None, found), None)


def _tokens(text, join):
    """[(kind, value)]: num, var, letter (in text), word, fn, built, op, or cmd for what is unknown.
    `join`: 1,234 is one number."""
    text = _JOINED.sub(lambda m: m[0].replace(",", ""), text) if join else text
    tokens = []
    for m in _TOKEN.finditer(text):
        kind, value = m.lastgroup, m[m.lastgroup or 0]
        if kind == "num":
            tokens.append(("num", Fraction(int(value) if value.isdigit() else value)))
        elif kind in ("cmd", "text", "word"):
            tokens += _name_tokens(value, kind)
        elif kind:
            is_unit = not value.isascii() and _unit(value)
            tokens.append(("word", value) if is_unit else ("op", _SAME.get(value, value)))
    while tokens and tokens[-1] in [("op", sign) for sign in (".", ",", ":", r"\\")]:
        tokens.pop()
    return tokens


def _name_tokens(run, kind):
    r"""Tokens of a command or of a run of letters. Outside \text two or three small letters that
    are no word or unit are one variable each; dx is one; capitals are points."""
    low, name = run.lower(), _SAME.get(run, run)
    if kind == "cmd":
        return [] if name in _DECORATION else [(_KINDS.get(name, "cmd"), name)]
    if " " in run:  # angle ABC
        return [("word", run)]
    if len(run) == 1:
        return [("letter" if kind == "text" else "var", run)]
    if low in _OPERATORS:
        return [("op", _OPERATORS[low])]
    if name in _FUNCTIONS or kind == "word" and name in ("pi", "infty", "sqrt", "binom"):
        return [(_KINDS[name], name)]
    short = len(run.rstrip("'")) <= 3 and not _SYLLABLE.fullmatch(run)
    known = low in _SHORT_WORDS or low in _NUMBERS or low in _SCALES or _unit(run)
    capitals = run.isupper() and short and not known
    if not capitals and (kind == "text" or known or not short or run.istitle()):
        return [("word", low)]
    if run[0] == "d" and len(run) == 2:
        return [("var", run)]
    return [("var", letter) for letter in re.findall("[A-Za-z]'*", run)]


def _number_in_words(tokens):
    """("num", q) of one hundred five, twenty five, 5 million; None of anything else."""
    total = group = Fraction(0)
    if not any(kind == "word" for kind, _ in tokens):
        return None
    for i, (kind, value) in enumerate(tokens):
        number = _NUMBERS.get(value) if kind == "word" else None
        if kind == "num" and i == 0:
            group = value
        elif number is not None and group % (100 if number > 9 else 10) == 0:
            group += number
        elif value in _PARTS and i and i == len(tokens) - 1:
            return "num", (total + group) / _PARTS[value]
        elif kind == "word" and value == "hundred":
            group = (group or 1) * 100
        elif kind == "word" and value in _SCALES:
            total, group = total + (group or 1) * _SCALES[value], Fraction(0)
        else:
            return None
    return "num", total + group


# --- the parser: lists, relations and sides are split at their signs, sums are read by descent ---

_CLOSERS = {"(": ")]", "[": ")]", "{": "}", "⦃": "⦄", "|": "|", "⟦": "⟧", "⌊": "⌋", "⌈": "⌉"}
_ENCLOSED = {"|": "abs", "⌊": "floor", "⌈": "ceil"}
_ZERO, _ONE, _END = Fraction(0), Fraction(1), ("end", "")
_EXPRESSIONS = set("num var + * inv ^ ! ° % mod binom call".split())


def _nest(tokens):
    """Each bracketed part as one token, ("group", (brackets, tokens)); a lone bar stays a sign."""
    stack = [("", [])]  # opening bracket, tokens after it
    for kind, value in [*tokens, _END]:
        closes = kind == "end" or kind == "op" and value in ")]}⦄⟧⌋⌉"
        while closes and stack[-1][0] == "|":  # P(A|B)
            rest = stack.pop()[1]
            stack[-1][1].extend([("op", "|"), *rest])
        opener, inside = stack[-1]
        if kind == "op" and opener and value in _CLOSERS[opener]:
            stack.pop()
            stack[-1][1].append(("group", (opener + value, tuple(inside))))
        elif kind == "op" and value in _CLOSERS and len(stack) <= MAX_DEPTH:
            stack.append((value, []))
        elif kind == "op" and (closes or value in _CLOSERS) or kind == "end" and opener:
            raise _Unreadable("a bracket without its other, or too deep")
        else:
            inside.append((kind, value))
    return stack[0][1][:-1]


def _split(tokens, signs):
    """Pieces of a token list between signs, and the signs."""
    cuts = [i for i, (kind, value) in enumerate(tokens) if kind == "op" and value in signs]
    starts, ends = [0, *(i + 1 for i in cuts)], [*cuts, len(tokens)]
    pieces = [tokens[start:end] for start, end in zip(starts, ends, strict=True)]
    return pieces, "".join(tokens[i][1] for i in cuts)


_LEVELS = [("list", {",", "or"}), ("seq", {"pmod"}), ("rel", {*"=≈<>≤≥≠∈≡"}), ("seq", {":"})]
_LEVELS.append(("union", {"∪"}))


def _answer(tokens, depth, strict=True, level=0):
    """Tree of an answer, split at the signs of each level; `strict`: no text, as in brackets."""
    present = {value for kind, value in tokens if kind == "op"}
    for deeper, (kind, signs) in enumerate(_LEVELS[level:], level + 1):
        if present & signs:
            pieces, found = _split(tokens, signs)
            if kind == "list":  # "1, or 2" has an empty piece
                pieces = [pieces[0], *filter(None, pieces[1:-1]), pieces[-1]]
            return (kind, found, tuple(_answer(part, depth, strict, deeper) for part in pieces))
    return _side(tokens, depth, strict)


def _side(tokens, depth, strict):
    kinds = {kind for kind, _ in tokens}
    try:
        return (_quantity if kinds & {"word", "letter"} else _expression)(tokens, depth)
    except _Unreadable:
        if "word" in kinds and kinds <= {"word", "var", "letter", "num"}:
            return ("words", "", " ".join(str(value) for _, value in tokens))
        if strict:
            raise
        return ("text", "", tuple(tokens))


def _quantity(tokens, depth):
    """A number in words, or a value and its unit; 2 hours 30 minutes are 150 minutes."""
    parts, start, i = [], 0, 0
    while i < len(tokens):
        unit, end = _unit_at(tokens, i) if i > start else ((), i)
        if unit:
            parts.append(("quantity", _expression(tokens[start:i], depth), unit))
            start = end
        i = end if unit else i + 1
    if not parts or len(parts) == 1 and start == len(tokens):
        return parts[0] if parts else _expression(tokens, depth)
    units = [_unit(unit[0][0]) for _, value, unit in parts if (value[0], unit[0][1]) == ("num", 1)]
    sizes = [size for _, dimension, size in units if dimension == units[0][1]]
    falling = len(sizes) == len(parts) and sizes == sorted(set(sizes), reverse=True)
    if not falling or start < len(tokens):
        raise _Unreadable("several quantities")
    total = sum(value[1] * size for (_, value, _), size in zip(parts, sizes, strict=True))
    return ("quantity", ("num", total / sizes[-1]), parts[-1][2])


def _unit_at(tokens, i):
    """(((unit, power), ...), index after it) of a unit at i: km/h, m s^{-2}, square feet."""
    unit, sign, power = {}, 1, 1
    while i < len(tokens):
        (kind, value), after = tokens[i], [*tokens[i + 1 : i + 2], _END][0]
        named = after[0] in ("word", "letter", "var")
        if kind == "op" and value in "/*×" and unit and named and _unit(after[1]):
            sign = -1 if value == "/" else 1
        elif kind == "word" and value in _POWERS and named:
            power = _POWERS[value]
        elif kind == "word" and value == "per":
            sign = -1
        elif known := (kind in ("word", "letter") or kind == "var" and unit) and _unit(value):
            if after == ("op", "^"):
                exponent = _Sum(tokens[i + 2 :], 0)
                kind, power = exponent.signed(exponent.atom)[:2]
                if kind != "num":
                    raise _Unreadable("the power of a unit")
                i += 1 + exponent.at
            unit[known[0]] = unit.get(known[0], 0) + sign * power
            sign, power = 1, 1
        else:
            break
        i += 1
    return tuple(sorted(unit.items())), i


def _negative(tree):
    return ("num", -tree[1]) if tree[0] == "num" else ("*", (("num", -_ONE), tree))


class _Sum:
    """Recursive descent over the nested tokens of one side. Trees: (num, q), (var, name),
    (+, parts), (*, factors), (inv, x), (^, x, y), (!, x), (°, x), (%, x), (mod, x, y),
    (binom, n, k), (call, name, x), (set, "", items), (seq, brackets, items)."""

    def __init__(self, tokens, depth):
        self.tokens, self.at, self.depth = tokens, 0, depth

    def peek(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else _END

    def take(self, *signs):
        kind, value = self.peek()
        self.at += (found := kind == "op" and value in signs)
        return value if found else None

    def opens(self, brackets):
        kind, value = self.peek()
        return kind == "group" and value[0][0] in brackets

    def sum(self):
        parts = [self.product()]
        while sign := self.take("+", "-"):
            parts.append(self.product() if sign == "+" else _negative(self.product()))
        return ("+", tuple(parts)) if len(parts) > 1 else parts[0]

    def signed(self, read):
        negative = False
        while sign := self.take("+", "-"):
            negative ^= sign == "-"
        return _negative(read()) if negative else read()

    def product(self):
        factors = [self.signed(self.power)]
        while True:
            kind, value = self.peek()
            if sign := self.take("*", "×", "/"):
                factor = self.signed(self.power)
                factors.append(("inv", factor) if sign == "/" else factor)
            elif self.take("mod"):
                return ("mod", _ordered(factors), self.product())
            elif kind not in ("num", "var", "fn", "letter", "group", "built"):
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
        readers = {"group": self.group, "fn": self.call, "built": self.built}
        readers |= {"var": self.name, "letter": self.name, "num": lambda value: ("num", value)}
        self.at, self.depth = self.at + 1, self.depth + 1
        if self.depth > MAX_DEPTH or kind not in readers:
            raise _Unreadable(f"too deep or unexpected: {value}")
        tree = readers[kind](value)
        self.depth -= 1
        return tree

    def built(self, value):
        if value == "sqrt":
            root = self.atom() if self.opens("[") else ("num", Fraction(2))
            return ("^", self.atom(), ("inv", root))
        above, below = self.atom(), self.atom()
        return ("*", (above, ("inv", below))) if value == "frac" else ("binom", above, below)

    def name(self, value):
        """x, x_1, f(x), f^{-1}(x), P(A|B)"""
        applied = value.rstrip("'") in _APPLIED
        capital = value[:1] in "pq" or value[:1].isupper() and len(value.rstrip("'")) == 1
        if self.take("_"):
            value = f"{value}_{self.atom()}"
        start, named = self.at, value
        if applied and self.take("^"):
            named = f"{value}^{self.signed(self.atom)}"
        if self.opens("("):
            inside = self.peek()[1][1]
            signs = {sign for kind, sign in inside if kind == "op"}
            if applied or capital and (len(inside) == 1 or signs & set(",|<>=≤≥")):
                self.at += 1
                argument = _answer(inside, self.depth, strict=False)
                plain = argument[0] in _EXPRESSIONS
                return ("call", named, argument) if plain else ("var", f"{named}{argument}")
        self.at = start
        return ("var", value)

    def group(self, value):
        (brackets, inside), opener = value, value[0][0]
        if opener == "⟦":
            rows = [_split(row, "&")[0] for row in _split(inside, (r"\\",))[0]]
            cells = (tuple(_answer(cell, self.depth) for cell in row) for row in rows)
            return ("seq", brackets, tuple(("seq", "&", row) for row in cells))
        if opener == "⦃" and not inside:
            return ("var", "emptyset")
        tree = _answer(inside, self.depth)
        items = tree[2] if tree[0] == "list" else (tree,)
        if opener == "⦃" or opener == "{" and len(items) > 1:
            return ("set", "", items)
        if len(items) == 1 and brackets in ("()", "[]", "{}"):
            return tree
        is_call = len(items) == 1 and opener in _ENCLOSED
        return ("call", _ENCLOSED[opener], tree) if is_call else ("seq", brackets, items)

    def call(self, name):
        """sin x, sin^2 x, log_2 x, sin(x): a bare argument ends at a sign or a function."""
        base, power = (self.signed(self.atom) if self.take(sign) else None for sign in "_^")
        bracketed = self.opens("([{")
        factors = [self.atom() if bracketed else self.signed(self.power)]
        while not bracketed and self.peek()[0] in ("num", "var", "built"):
            factors.append(self.power())
        if power == ("num", -1) and "arc" + name in _FUNCTIONS:
            name, power = "arc" + name, None
        tree = ("call", name, ("*", tuple(factors)))
        if base is not None:
            tree = ("*", (("call", "ln", tree[2]), ("inv", ("call", "ln", base))))
        return tree if power is None else ("^", tree, power)


def _expression(tokens, depth):
    reader = _Sum(tokens, depth)
    tree = _number_in_words(tokens) or reader.sum()
    if reader.at < len(tokens) and reader.at:
        raise _Unreadable("something is left")
    return tree


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
    """[(tokens, tree, domain)] of an answer; (B) 5 is also 5 and B, and 5 m also 5 metres."""
    text = text if text.isascii() else _ascii(text)
    for pattern, new in _RULES if "\\" in text else _PLAIN_RULES:
        text = pattern.sub(new, text)
    text, _, domain = text.partition("∀")
    tokens = _tokens(text, join)
    choices, values = [tokens], [str(value) for _, value in tokens[:3]] + ["", "", ""]
    skip = 3 if values[0] + values[2] == "()" else 2 if values[1] in tuple(".):") else 0
    marked = skip and len(tokens) > skip and re.fullmatch("[A-J]", values[skip - 2])
    if marked and tokens[skip][1] not in tuple("=+*/^_!,<>∪"):
        choices += [tokens[skip:], [("var", values[skip - 2])]]
    unit = r"(-?[\d.,/]+)(?:\s|\\[,;: ])+([mshgLNJWVKAC](?:\s*[*/]\s*[mshg](?:\^\{?-?\d\}?)?)*)"
    if m := re.fullmatch(unit, text.strip()):
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
    turns = ({"±": "+", "∓": "-"}, {"±": "-", "∓": "+"})
    turns = turns if ("op", "±") in shown or ("op", "∓") in shown else ({},)
    try:
        read = [[(kind, turn.get(value, value)) for kind, value in shown] for turn in turns]
        trees = [_answer(_nest(tokens), 0, strict=False) for tokens in read]
    except _Unreadable:
        return None
    plus, minus = trees[0], trees[-1]
    if plus == minus:
        return plus
    kind = plus[0] if plus[0] in ("list", "set") else ""
    pairs = zip(plus[2], minus[2], strict=True) if kind else [(plus, minus)]
    return (kind or "list", ",", tuple(item for pair in pairs for item in dict.fromkeys(pair)))


# --- values ---


class _Point(dict):
    """Values of the constants, and random ones of variables; counts the work of the arithmetic."""

    def __init__(self, seed, signs, work, **more):
        super().__init__({"pi": math.pi, "e": math.e, "i": 1j}, **signs, **more)
        self.seed, self.work, self.free = seed, work, False

    def __missing__(self, name):
        if name in ("infty", "emptyset", "setR"):
            raise _Unreadable(f"{name} is no number")
        rng, self.free = random.Random(f"{self.seed} {name}"), True
        sign = 1 if self.seed < 6 else rng.choice((-1, 1))
        self[name] = sign * Fraction(rng.randint(500, 6000), 997)
        return self[name]

    def bounded(self, value):
        bits = (
            sum(map(int.bit_length, value.as_integer_ratio())) if isinstance(value, Fraction) else 1
        )
        self.work[0] -= bits + 50
        if bits > 2 * MAX_BITS or self.work[0] < 0:
            raise _Unreadable("too large")
        return value


def _value(tree, point):
    """Value of an expression at a point: a Fraction where it can be, else a float or complex."""
    kind, *parts = tree
    if kind in ("num", "var"):
        return point.bounded(parts[0] if kind == "num" else point[parts[0]])
    if kind in ("+", "*"):
        total = _ZERO if kind == "+" else _ONE
        for part in parts[0]:
            value = _value(part, point)
            total = point.bounded(total + value if kind == "+" else total * value)
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
    if not all(isinstance(v, Fraction) and v.denominator == 1 for v in values):
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
        key = str(value) if isinstance(value, Fraction) else f"{complex(value):.9g}"
        return point[f"{name}({key})"]
    if isinstance(value, complex) or abs(value) > 1e9:
        raise _Unreadable("no real number")
    return Fraction(getattr(math, name)(value))


def _power(base, exponent):
    whole = getattr(exponent, "denominator", 0) == 1
    root_of = exponent.denominator if isinstance(exponent, Fraction) else 0
    if isinstance(base, Fraction) and (whole or root_of == 2 and base >= 0):
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


# --- the same? ---


def _is_name(tree):
    """Can it name a value, before "="? x, f(2), AB, |AB|, NO/BO, (x, y), words, text."""
    kind = tree[0]
    if kind == "call":
        return tree[1] not in _FUNCTIONS and (tree[1] != "abs" or str(tree[2][1]).isupper())
    if kind in ("*", "seq"):
        return _is_name(tree[-1][0]) and all(_is_name(p) or p[0] == "num" for p in tree[-1])
    if kind == "inv":
        return _is_name(tree[1])
    return kind in ("words", "text") or kind == "var" and tree[1] not in ("infty", "setR")


def _values(tree):
    """What a chain `x = a = b` gives for x; () for another relation. What follows ≈ is dropped."""
    _, signs, sides = tree
    start = int(_is_name(sides[0]))
    end = signs.find("≈", start) + 1
    return () if set(signs) - set("=≈∈") else sides[start : end or None]


def _close(a, b, free):
    """Equal, or within the rounding of floats; a long decimal is not close to a float."""
    exact = [isinstance(a, Fraction), isinstance(b, Fraction)]
    if a == b or all(exact):
        return a == b
    if not free and any(isinstance(v, Fraction) and v.denominator > 10**5 for v in (a, b)):
        return False
    a, b = complex(a), complex(b)
    error = max(1e-13, (1e-9 if free else 1e-11) * max(abs(a), abs(b)))
    return abs(a - b) <= error < math.inf


_TURN = str.maketrans("<>≤≥", "><≥≤")
_BELOW, _ABOVE = (-math.inf, True), (math.inf, False)  # the cuts around all numbers


@dataclass
class _Comparison:
    """Equality of trees. `signs`: what ° and % count for; `has_i`: complex values are meant."""

    signs: dict
    has_i: bool
    work: list

    def agree(self, left, right, ratio=False):
        """Equal at random points where both exist; with `ratio`, always with the same quotient."""
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
                same = _close(a, b, point.free)
                real = any(isinstance(v, Fraction) or abs(v.imag) <= 1e-12 * abs(v) for v in (a, b))
            except (ArithmeticError, ValueError):
                same = None  # outside the domain of one of them
            if same is False and (self.has_i or real):
                return False
            agreed += same is True
            if not point.free:
                return same is True
        return agreed >= 3

    def equal(self, left, right):
        kinds = {left[0], right[0]}
        if left == right or kinds == {"num"}:
            return left == right
        if "quantity" in kinds:  # where both have a unit, the same one
            same = len(kinds) == 2 or left[2] == right[2]
            return same and self.equal(*(t[1] if t[0] == "quantity" else t for t in (left, right)))
        if kinds == {"rel"} and self.equal_relations(left, right):
            return True
        if "rel" in kinds and kinds != {"rel"}:
            relation, other = (left, right) if left[0] == "rel" else (right, left)
            sides = _values(relation)
            if sides and all(self.equal(side, other) for side in sides):
                return True
        if kinds & {"rel", "union"} or ("var", "setR") in (left, right):
            sets = self.as_set(left), self.as_set(right)
            if all(sets):
                return _same_set(*sets)
        if kinds == {"set"}:  # repeats do not count
            ways = (left[2], right[2]), (right[2], left[2])
            return all(any(self.equal(a, b) for b in ys) for xs, ys in ways for a in xs)
        if kinds <= {"list", "set"} or kinds == {"union"}:
            ordered = any("('op', '…')" in repr(tree) for tree in (left, right))
            return (self.equal_all if ordered else self.equal_in_any_order)(left[2], right[2])
        if kinds == {"seq"}:
            return left[1] == right[1] and self.equal_all(left[2], right[2])
        return kinds <= _EXPRESSIONS and self.agree(left, right)

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
        """Part by part, also turned; as equations that vanish together; as values of one name."""
        turned = ("rel", left[1][::-1].translate(_TURN), left[2][::-1])
        if any(t[1] == right[1] and self.equal_all(t[2], right[2]) for t in (left, turned)):
            return True
        if left[1] == right[1] == "=":
            differences = (("+", (a, _negative(b))) for _, _, (a, b) in (left, right))
            if self.agree(*differences, ratio=True):
                return True
        pairs = [(a, b) for a in _values(left) for b in _values(right)]
        return left[2][0] == right[2][0] and pairs and all(self.equal(*pair) for pair in pairs)

    def as_set(self, tree):
        """(name or None, [(low, high), ...]) of a set of numbers, or of inequalities in one name;
        or None. The ends are cuts: (2, False) just below 2, (2, True) just above it."""
        kind, signs, sides = (*tree, ())[:3]
        name, rows = None, None
        if tree == ("var", "setR"):
            rows = [(_BELOW, _ABOVE)]
        elif kind == "seq" and len(sides) == 2 and signs[0] in "([":
            low, high = map(self.number, sides)
            rows = [((low, signs[0] == "("), (high, signs[1] == "]"))]
        elif kind == "set":
            rows = [((value, False), (value, True)) for value in map(self.number, sides)]
        elif kind in ("union", "list"):
            parts = [self.as_set(part) for part in sides]
            if all(parts) and len({name for name, _ in parts}) == 1:
                name, rows = parts[0][0], sorted(row for _, part in parts for row in part)
                apart = all(a[1] <= b[0] for a, b in zip(rows, rows[1:], strict=False))
                rows = rows if kind == "union" or name and apart else None  # x<1, x>2 means "or"
        elif kind == "rel" and signs in ("∈", "≠") and _is_name(sides[0]):
            name, value = sides[0], self.number(sides[1])
            if signs == "≠":
                rows = [(_BELOW, (value, False)), ((value, True), _ABOVE)]
            elif inner := self.as_set(sides[1]):
                rows = inner[1]
        elif kind == "rel":
            name, rows = self.solution(signs, sides)
        return (name, rows) if rows and None not in (c[0] for row in rows for c in row) else None

    def solution(self, signs, sides):
        """(name, [(low, high)]) of 2 < x, 2 < -3x <= 5 and the like; (None, None) of others."""
        if re.fullmatch("[>≥]{1,2}", signs):
            signs, sides = signs[::-1].translate(_TURN), sides[::-1]
        values = [-math.inf, *map(self.number, sides), math.inf]
        if not re.fullmatch("[<≤]{1,2}", signs) or values.count(None) != 1:
            return None, None
        at = values.index(None)
        name, slope, offset = self.linear(sides[at - 1])
        if not name or len(sides) == 3 and at != 2:
            return None, None
        signs = f"<{signs}<"
        ends = (values[at - 1], signs[at - 1] == "<"), (values[at + 1], signs[at] == "≤")
        ends = [((value - offset) / slope, side != (slope < 0)) for value, side in ends]
        return name, [tuple(ends if slope > 0 else ends[::-1])]

    def number(self, tree, known=()):
        """The real value of a constant, also an infinite one; None where there is none."""
        point = _Point(0, self.signs, self.work, infty=math.inf, **dict(known))
        try:
            value = _value(tree, point)
        except (ArithmeticError, ValueError):
            return None
        return None if point.free or value.imag else value.real

    def linear(self, tree):
        """(name, a, b) of a x + b, or (None, 0, 0)."""
        if _is_name(tree):
            return tree, 1, 0
        names = set(re.findall(r"'var', ['\"](.*?)['\"]\)", repr(tree))) - {"pi", "e", "i"}
        values = [self.number(tree, dict.fromkeys(names, Fraction(x))) for x in (0, 1, 2, 7)]
        if len(names) != 1 or not all(isinstance(v, Fraction) for v in values):
            return None, 0, 0
        start, slope = values[0], values[1] - values[0]
        straight = slope and values[2:] == [start + 2 * slope, start + 7 * slope]
        return (("var", *names), slope, start) if straight else (None, 0, 0)


def _same_set(left, right):
    """The same name, where both have one, and the same ends."""
    if left[0] and right[0] and left[0] != right[0] or len(left[1]) != len(right[1]):
        return False
    ends = zip(sum(left[1], ()), sum(right[1], ()), strict=True)
    return all(a[1] == b[1] and _close(a[0], b[0], False) for a, b in ends)


_PLAIN = re.compile(r"-?(?:\d{1,300}(?:\.\d{1,300})?|\.\d{1,300})", re.A)


def same_answer(response: str, gold: str) -> bool:
    """Are two texts the same answer? % and ° count as 1 on both sides, or as 1/100 and pi/180."""
    response, gold = response.strip(), gold.strip()
    if response == gold:
        return True
    if _PLAIN.fullmatch(response) and _PLAIN.fullmatch(gold):
        return Fraction(response) == Fraction(gold)
    work = [MAX_WORK]
    return any(
        _same_reading(mine, theirs, work)
        for join in (True, False)[: 1 + bool(_JOINED.search(response) or _JOINED.search(gold))]
        for mine in _read(response, join)
        for theirs in _read(gold, join)[:1]
    )


def _same_reading(mine, theirs, work):
    (tokens, tree, domain), (gold_tokens, gold_tree, gold_domain) = mine, theirs
    if domain and gold_domain and domain != gold_domain:
        return False
    if tokens == gold_tokens or None in (tree, gold_tree):
        return tokens == gold_tokens
    both, readings = tokens + gold_tokens, [{"°": _ONE, "%": _ONE}]
    if ("op", "°") in both or ("op", "%") in both:
        readings.append({"°": math.pi / 180, "%": Fraction(1, 100)})
    has_i = ("var", "i") in both
    try:
        return any(_Comparison(signs, has_i, work).equal(tree, gold_tree) for signs in readings)
    except (_Unreadable, OverflowError):
        return False  # beyond a bound


def is_value(text: str) -> bool:
    """Can an answer be read as something else than text?"""
    text = text.strip()
    is_text = ("'text'" in repr(tree) for _, tree, _ in _read(text, True) if tree)
    return bool(_PLAIN.fullmatch(text)) or not all(is_text)


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
