r"""When are two final answers of a mathematics problem the same?

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
("quantity", ("+", (2, ("*", (1, ("inv", 3))))), ("var", "h")), where 2 is ("num", Fraction(2)).
Trees are compared by value: numbers are exact fractions, all else is evaluated at random points
where both sides are real: sqrt(x^3) is x sqrt(x), |x| is not x. Floats are equal within 1e-11, but
no decimal is an irrational number. A remark, 5 (loss), counts only where both answers have one."""

import cmath
import math
import operator
import random
import re
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, reduce
from unicodedata import normalize

MAX_DEPTH = 25  # nested brackets and functions, each a few Python frames
MAX_BITS = 20_000  # of any integer on the way: 2004! has 19,089
MAX_WORK = 4_000_000  # bits of all integers on the way, together

# --- what is known ---


def _pairs(text):
    return dict(pair.rsplit("=", 1) for pair in text.split())


_UNITS = """length: mm 0.001 millimeter millimetre, cm 0.01 centimeter centimetre, m 1 meter 米
length: km 1000 kilometer kilometre, in 0.0254 inch, ft 0.3048 foot feet, yd 0.9144 yard
time: s 1 sec second 秒, min 60 minute 分钟, h 3600 hr hour 小时, day 86400 天, week 604800
money: cent 1 ¢ penny, dollar 100 usd buck
mass: oz 1 ounce, lb 16 pound
-: mile mi, mg milligram, g gram gm 克, kg kilogram kilo 千克, ton tonne, L liter litre, mL ml
-: milliliter, gallon gal, quart, pint, cup, tablespoon tbsp, teaspoon tsp, acre, hectare, month
-: year yr 年, euro eur, yuan 元 rmb, rupee, yen, peso, won, franc, ruble, dime, nickel, quarter
-: N newton, J joule, W watt, kW kilowatt, kWh, V volt, A amp ampere, K kelvin, C celsius, Hz hertz
-: F fahrenheit, Pa pascal, mol mole, rad radian, mph, am, pm, unit, bit, byte, kb, mb, gb, rpm, hp
-: cal calorie, kcal, dB decibel, ohm, knot, man men, woman women, child children, leaf leaves
-: person people, loaf loaves, mouse mice"""  # dimension: unit, its size, other names
_NOUNS = """acorn adult animal answer apartment apple arrangement baby bag ball balloon banana bar
bead bean bear bee bicycle bike bill bird blanket block blueberry boat book bottle bowl box boy
bracelet bread brick brother brownie bucket bug burger bus button cake can candle candy cookie car
card carrot cat chair chicken chip choice chocolate clip coin color combination computer container
copy couple cow crate crayon cupcake customer daughter desk diamond dog doll donut doughnut door
dress driver duck egg element elephant employee episode error event eye face family fan farmer fish
flag flower folder fork friend frog fruit game gift girl glass goal goat grape group guest gumball
hamburger hand handshake hat head hen horse hotdog house integer invitation item jar jewel key kid
kitten lap leg lemon letter lightbulb lion lollipop magazine marble mango marker match meal melon
member message minnow monkey movie muffin mushroom nail necklace necktie night nut orange outcome
outfit page painting pair pancake paper parent party passenger patient peach peanut pear pearl pen
pencil pet phone photo piano picture pie piece pig pill pillow pizza plane plant plate player point
possibility potato present prize problem program pumpkin pupil puppy puzzle question rabbit ribbon
ring robot rock roll room rose row sandwich scarf seat seed sheep shell shirt shoe shop shot sibling
sister skirt slice snack snake sock soldier solution son song spider spoon stamp star step stick
sticker stone store strawberry student subset suit surfboard swimmer table team teacher ticket tile
time tire toddler token tomato tourist toy train tree triangle trip trophy truck tulip turkey value
vase vehicle video village visitor vote voter waffle way wheel window worker"""
_ADJECTIVES = """additional different distinct extra full identical possible right total whole"""
_POWERS = dict.fromkeys(_ADJECTIVES.split(), 1) | {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_SHORT_WORDS = """all any ask if is it its may no odd of off old on one out per she sq cu the
thu tie to too two who you yes fri tue""".split()  # with _SYLLABLE's: else three variables
_NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"""
_NUMBERS = {word: n if n < 20 else 10 * n - 180 for n, word in enumerate(_NUMBERS.split())}
_PARTS = {"half": 2, "thirds": 3, "third": 3, "fourths": 4, "fifths": 5, "tenths": 10}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3}
_SCALES |= {"million": 10**6, "billion": 10**9, "trillion": 10**12}
_OPERATORS = _pairs("""plus=+ minus=- times=* over=/ percent=% percentage=% pct=% degree=°
degrees=° per=/ and=, or=or""")
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
_SAME = _pairs(r"""times=× cdot=* ast=* bullet=* div=/ leq=≤ le=≤ leqslant=≤ leqq=≤ geq=≥ ge=≥
geqslant=≥ geqq=≥ lt=< gt=> ne=≠ neq=≠ approx=≈ thickapprox=≈ in=∈ cup=∪ pm=± mp=∓ lvert=| rvert=|
vert=| mid=| langle=( rangle=) lbrack=[ rbrack=] lbrace=⦃ rbrace=⦄ \{=⦃ \}=⦄ lfloor=⌊ rfloor=⌋
lceil=⌈ rceil=⌉ infinity=infty inf=infty oo=infty varnothing=emptyset degree=° percent=% \%=% **=^
;=, colon=: equiv=≡ bmod=mod mod=mod pmod=pmod dots=… ldots=… cdots=… dotsc=… ...=… <==≤ >==≥ !==≠
land=, lor=or over=frac choose=binom""")
_KINDS = dict.fromkeys(_SAME.values(), "op") | dict.fromkeys(_NAMES, "var")
_KINDS |= dict.fromkeys(_FUNCTIONS, "fn") | dict.fromkeys(("frac", "binom", "sqrt"), "built")
_TEXT = "text|mbox|hbox|textbf|textit|textrm|textsf|textnormal|texttt|mathrm|mathsf|operatorname"
_DECORATION = """left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr displaystyle
textstyle scriptstyle quad qquad enspace thinspace medspace thickspace negthinspace limits nolimits
boxed fbox framebox mathbf mathit mathcal boldsymbol bm bf rm it sf tt cal large Large LARGE huge
Huge normalsize small footnotesize scriptsize tiny underline emph mathop mathord strut checkmark
square blacksquare Box qed pounds euro hfill noindent centering ensuremath"""
_DECORATION = {*_DECORATION.split(), *_TEXT.split("|")}
_UNICODE = _pairs(r"""−=- –=- —=- ‐=- ‑=- ‒=- ×=\times ·=* ⋅=* ∙=* ∗=* ÷=/ ∕=/ ⁄=/ ⩽=≤ ≦=≤ ⩾=≥ ≧=≥
∞=\infty √=\sqrt ∛=\sqrt[3] º=° ˚=° ′=' ’=' ∅=\emptyset ⟨=( ⟩=) 。=. 、=, …=\ldots ⋯=\ldots ℝ=\setR
ℤ=\setZ ℕ=\setN ℚ=\setQ ℂ=\setC ∣=| €= £= ¥= ✓= ✔= ✅= ☑= ∎= ■= □=""")
_UNICODE |= dict.fromkeys("\ufe0f\u200b\u20d7", "") | dict.fromkeys("\u00a0\u2009\u202f\u3000", " ")
_UNICODE |= {chr(0x3B1 + n): "\\" + name for n, name in enumerate(_GREEK)}
_UNICODE |= {chr(0x391 + n): "\\" + name.capitalize() for n, name in enumerate(_GREEK)}
_UNICODE = {ord(c): re.sub(r"(\\[a-zA-Z]+)$", r"\1 ", new) for c, new in _UNICODE.items()}

# --- rewriting rules: what a text must hold, pattern ⇒ replacement  # two texts made the same ---


def _ascii(text):
    """Plain digits, signs and brackets: full-width 12 is 12, x₁ is x_{1}, ½ is a fraction."""
    text = re.sub("(\\d)[\u0305\u0307]", r"\\overline{\1}", text)  # 0.3̅
    text = re.sub("[⁰¹²³⁴-⁹⁺⁻ⁿ]+", r"^{\g<0>}", text)
    text = re.sub("[₀-₉₊₋ₙᵢ]+", r"_{\g<0>}", text)
    text = re.sub("[¼-¾⅐-⅞]", lambda m: "{%s}" % normalize("NFKC", m[0]), text)
    text = re.sub(r"\{(\d)⁄(\d+)\}", r"\\frac{\1}{\2}", text).translate(_UNICODE)
    return re.sub(r"\d", lambda m: str(int(m[0])), normalize("NFKC", text).translate(_UNICODE))


def _rows(m):
    """Rows of equations are a list; rows with conditions a set of (value, condition)."""
    rows = filter(None, (row.strip(" ,.\n") for row in m[2].split("\\\\")))
    if m[1] != "cases" or "&" not in m[2]:
        return ",".join(rows).replace("&", "")
    rows = (re.sub(r'"(?:if|for|when)"|,', " ", row).replace("&", ",") for row in rows)
    return r"\{" + ",".join(f"({row})" for row in rows) + r"\}"


def _based(m):
    """12_5 is 7; a digit that does not fit the base is left."""
    (whole, _, part), base = m[1].partition("."), int(m[2].strip("{} "))
    if not 2 <= base <= 36 or max(int(c, 36) for c in whole + part) >= base:
        return m[0]
    return f"({int(whole + part, base)}/{base ** len(part)})"


_RULE_TABLE = r"""
\$      \\\$ ⇒ ¤                                                   # \$5 ≠ 5\text{ cents}
$|~     [$~] ⇒ \x20                                                # $5$ = 5
\       \\(?:[dtcs]|nice|flat)(frac|binom)(?![a-z]) ⇒ \\\1         # \dfrac{3}{4} = 3/4
^       \^·\{?·(?:\\circ|\\degree|°)·\}? ⇒ °                       # 90^{\circ} = 90°
^       (?<=\d)·\^·(?:DEG|\{·DEG·\}) ⇒ °                           # 45^{\text{o}} = 45°
°       °·([CF])(?![A-Za-z]) ⇒ ° "\1"                              # 25^\circ C = 25°\text{C}
st|nd|rd|th (?<=\d)·\^?·(?:ORD|\{·ORD·\}) ⇒                        # 12^{\text{th}} = 12
\       \\(?:[hv]?phantom|[hv]space\*?|SHADE)·(?:\{[^{}]*\}|-) ⇒   # \textcolor{red}{5} = 5
.       (?<=[A-Za-z]{2})\.(?=\s) ⇒                                 # 34\text{ sq. units} = 34
.       \b([aApP])\.\s?([mM])\b\.? ⇒ \1\2                          # 9 a.m. = 9 am
\\      \\\\·\[·-?[\d.]+·[a-z]{2}·\] ⇒ \\\\                        # ⟦1\\[4pt]2⟧ = ⟦1\\2⟧
\begin  \\begin·\{(?:MATRIX|array\}·\{[^{}]*)\} ⇒ ⟦ # \begin{array}{c}5\end{array} = ⟦5⟧
\end    (?:\\\\·)?\\end·\{(?:MATRIX|array)\} ⇒ ⟧ # \begin{pmatrix}5\end{pmatrix} = ⟦5⟧
\over|\ch (?:(\{)|^)(IN*?)\\(over|choose)(?![a-z])(IN*)(?(1)\}|$) ⇒ \\\3{\2}{\4} # {4\over 3} = 4/3
\prime  \^·\{?·\\prime·\}? ⇒ '                                     # f^{\prime}(x) = f'(x)
\dot    \\dot·\{?(\d)\}?(\d*)\\dot·\{?(\d)\}? ⇒ \\overline{\1\2\3}   # 0.\dot{1}\dot{2} = 12/99
.       (?<![\d.])(\d*)\.(\d*)·BAR ⇒ PERIOD                        # 0.1\overline{6} = 1/6
.       (?<![\d.])(\d*)\.(\d*)\((\d+)\) ⇒ PERIOD                   # 0.(3) = 1/3
|       (?<![\d.])\d{1,3}(?:(?:\{,\}|,? ?\\[,;:! ] ?| |')\d{3})+(?!\d) ⇒ DIGITS # 1\,722 = 1722
e|E     (?<![\w.^])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,4})(?![\w.]) ⇒ (\1*10^{\2}) # 1.5e4 = 15000
\frac   \\frac·(\d) ⇒ \\frac{\1}                                   # \frac12 = 1/2
\frac   \\frac·(\{[^{}]*\})·(\d) ⇒ \\frac\1{\2}                    # \frac{1}23 ≠ 1/23
\frac   (?<![\d.^_a-zA-Z])(?<!sqrt )(\d+)·\\frac·\{(\d+)\}·\{(\d+)\} ⇒ MIXED # 2\frac{1}{3} = 7/3
/       (?<![\d^_.])(\d+)\s+(\d+)·/·(\d+)(?!\d) ⇒ MIXED            # 2 1/2 = 5/2
\frac   \\frac·\{·DIFF([a-z])·\}·\{·DIFF([a-z])·\} ⇒ \\frac{d\1}{d\2} # \frac{d y}{d x} = dy/dx
x|X     (?<=\d)·[xX]·10·\^ ⇒ *10^                                  # 1.5 x 10^4 = 15000
each    \b(\d[\d.]*) [a-z]+ (?:with|of) (\d[\d.]*)(?: [a-z]+)? each\b ⇒ \1*\2 # 2 bags of 4 each = 8
l|w|ag (years?|feet|inches|miles|hours|days) (?:old|tall|long|away|wide|ago)\b ⇒ \1 # 9 days ago = 9
\frac   \\frac\{·TEXT\{(IN*)\}\}\{·TEXT\{(IN*)\}\} ⇒ \\text{\1/\2} # 5\frac{\text{km}}{\text{h}} = 5
-|and   \b(hundred(?= and )|(?:\w+ty|one|two)(?=-))(?:-| and )(?=[a-z]) ⇒ \1\x20 # sixty-two = 62
divided \bdivided by\b ⇒ over                                      # 6 divided by 3 = 2
and     (hours?|hr|feet|ft|days?)\s+and·\}?·(?=\d+·(?:TEXT\{·)?[mhi]) ⇒ \1\x20 # 1 hr and 5 min = 65
mod     \((?:·|TEXT·\{·)\\?[bp]?mod\b(?:·\})?([^()]*)\) ⇒ \\pmod{\1} # x≡2 (mod 6) = x≡2\pmod6
mod     (\\equiv.*?|≡.*?)\\b?mod\b ⇒ \1\\pmod                      # x\equiv 2\bmod 6 = x≡2\pmod 6
\R|ll   \b[Aa]ll (?:reals|real numbers)\b|\\R\b ⇒ \\setR\x20       # \R = (-∞,∞)
\mathbb \\mathbb·\{?·([A-Z])·\}? ⇒ \\set\1\x20                     # x\in\mathbb{Z} = x\in\mathbb Z
\{      ^·\\\{·([a-z])(?:·\\in·\\setR)?·(?:\\mid\b|\||:)(.*)\\\}·$ ⇒ \2 # \{x\mid x>0\} = x>0
\set    \\setR·(?:\\setminus|-)·\\\{([^{},]*)\\\} ⇒ x\\ne\1 # \R\setminus\{0\} = (-∞,0)\cup(0,∞)
answer  ·\bis the (?:final )?answer\b ⇒                            # \text{42 is the answer} = 42
_       TEXT·\{·([\dA-Z]*\d[\dA-Z]*)·\}·_ ⇒ \1_                    # \text{A5}_{11} = A5_{11}
\triangle \\triangle·([A-Z]{3})(?![A-Za-z]) ⇒ TRIANGLE             # \triangle ACB = \triangle ABC
\angle  \\angle·([A-Z]{1,3})(?![A-Za-z]) ⇒ ANGLE                   # \angle ABC = \angle CBA
{       ([_^]|\\(?:mathbf|boldsymbol|bm))·\{·(\w)·\} ⇒ \1 \2       # \sum_{k}^{n} k = \sum_k^n k
\       TEXT·\{(IN*)\} ⇒ QUOTED                                    # 5\text{ cm} = 5 cm
¤       ¤([^"]*)$ ⇒ \1 "dollar"                                      # \$6 ≠ 6\text{ cents}
| (?:[,;:\s]|\\[\\,:;! ]|\\(?:q?quad|qed|checkmark|\w*square|Box)\b|(?<![.\\])\.)+$ ⇒ # 5, = 5
\begin  \\begin·\{(cases|aligned|align\*?|gathered|split)\}(.*?)\\end\{\1\} ⇒ ROWS # LINES = x=1,y=2
_       ((?:\d[\dA-Z]*|[A-Z]+\d[\dA-Z]*)(?:\.[\dA-Z]+)?)·_·(\{·\d\d?·\}|\d\d?) ⇒ BASED # 12_5 = 7
:|is|"  ^·LABEL ⇒                                                  # \text{Total: }42 = 42
( GAP\((?:rounded|to the nearest)\b[^()]*\)END ⇒                     # 3 (rounded to two digits) = 3
( ^(?!.*(?:[-+*/^_=(,]|\\[a-z]+)GAP\([^()]*\)END)(.*?\S)GAP\((REMARK)\)END ⇒ \1∀\2 # 5 (gain) = 5
( ^(.*?\S)(?!\()GAP\(([^()]*(?:[<>≠=]|\\[gln](?:eq?|t)\b)[^()]*)\)END ⇒ \1∀\2 # 5 (x>0) = 5
for|w|\set (?<=.)(?:FOR) ⇒ ∀\g<0>                                  # k\pi, k\in\mathbb Z = k\pi
"""
_WORDS = {*_SCALES, *_NUMBERS, *_OPERATORS, *_FUNCTIONS, "sqrt", "pi"} - {"or", "and"}
_SHORTHAND = {
    "·": r"\s*",
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
    "GAP": r"(?:\s|\\q?quad|\\[,; ])*",
    "END": r"[\s.]*(?=∀|$)",
    "REMARK": rf"""(?=[^()]*?(?<!\\)\b[A-Za-z]{{2}})(?![^()]*(?<!\\)\b
(?i:{"|".join(_WORDS)})(?![A-Za-z]))[^()]*""",  # words, but none of a number or a function
    "FOR": r""",?\s*"?(?:for|where|with)"?\s+"?(?:any|all|every|each|some|integers?|real|constant
|natural|positive|[a-z])"?(?![A-Za-z(]).*$|[,(]\s*[a-zA-Z]\s*(?:\\in\b|∈)\s*\\set[A-Z]\s*\)?\s*$""",
}  # a meaning may run over several lines
_MEANINGS = _pairs("""setz=Z integer=Z setn=N natural=N setr=R real=R even=E odd=O loss=L gain=G
profit=G minim=L maxim=G""")  # of words in a remark
_RELATION = re.compile(r"(?!.*\b(?:and|or)\b)[^,]*(?:[<>≠=]|\\[gln](?:eq?|t)\b)[^,]*")  # x>0
_REPLACEMENTS = {
    "MIXED": lambda m: f"({m[1]}+{m[2]}/{m[3]})" if int(m[2]) < int(m[3]) else m[0],
    "PERIOD": lambda m: f"(({m[1]}{m[2]}{m[3]}-0{m[1]}{m[2]})/{'9' * len(m[3])}{'0' * len(m[2])})",
    "ROWS": _rows,
    "BASED": _based,
    "DIGITS": lambda m: re.sub(r"\D", "", m[0]),
    "TRIANGLE": lambda m: f'"triangle {"".join(sorted(m[1]))}"',
    "ANGLE": lambda m: f'"angle {min(m[1], m[1][::-1])}"',
    "QUOTED": lambda m: re.sub(r"(?<![\\A-Za-z])[A-Za-z]+", r'"\g<0>"', f" {m[1]} "),
}
_RULES, EXAMPLES = [], []  # [(keys, pattern, replacement)], texts
for _line in _RULE_TABLE.strip().splitlines():
    _keys, _pattern, _new, _example = re.fullmatch(r"(\S+) +(.*) ⇒(.*) # (.*)", _line).groups()
    for _name, _meaning in _SHORTHAND.items():
        _pattern = _pattern.replace(_name, _meaning.replace("\n", ""))
    _new = _new.strip().replace(r"\x20", " ")
    _RULES.append((_keys.split("|"), re.compile(_pattern, re.S), _REPLACEMENTS.get(_new, _new)))
    EXAMPLES.append(_example.strip().replace("LINES", _SHORTHAND["LINES"]))
_MARKED = r'\s*(\()?"?([A-J])"?(?(1)\)|[.):])(?!\s*[=+*/^_!,<>∪])\s*(\S.*)'  # (B) 5
_MEASURED = r"(-?[\d.,/]+)(?:\s|\\[,;: ])+([mshgLNJWVKAC](?:\s*[*/]\s*[mshg](?:\^\{?-?\d\}?)?)*)"
_JOINED = r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)(?![^()\[\]]*?(?:[)\]]|\\\}))"  # not in (1,234)
_TOKEN = re.compile(
    r"""(?P<num>\d+\.?\d*(?!\.\.)|\.\d+)|(?P<op>\\\\|\\[{}%]|\*\*|<=|>=|!=|\.\.\.)|=(?==)
    |\\(?P<cmd>[a-zA-Z]+)|\\.|"(?P<text>[a-zA-Z ]+)"|(?P<word>[A-Za-z]+'*)|["`¤]|\s+|(?P<op2>.)""",
    re.X | re.S | re.A,
)
_SYLLABLE = re.compile("(?![abc]{3})[b-df-hj-np-tvw][aeiou][b-df-hj-np-tvw]")  # tom is not t o m
_UNIT = {}  # name: (unit, dimension or unit, size); m is not M
for _line in [f"-: {', '.join(_NOUNS.split())}", *_UNITS.splitlines()]:
    _dimension, _units = _line.split(": ")
    for _name, *_others in map(str.split, _units.split(",")):
        _size = Fraction(1 if _dimension == "-" else _others.pop(0))
        _row = (_name, _name if _dimension == "-" else _dimension, _size)
        for _form in [_name, *_others]:
            _plurals = [_form.lower(), _form + "s", _form + "es", re.sub("y$", "ies", _form)]
            _UNIT |= dict.fromkeys([_form, *(_plurals if len(_form) > 1 else [])], _row)


class _Unreadable(ValueError):
    """Outside the grammar or beyond a bound."""


def _tokens(text):
    """[(kind, value)]: num, var, letter (in text), word, fn, built, op; cmd is what is unknown."""
    tokens = []
    for m in _TOKEN.finditer(text):
        kind, value = m.lastgroup, m[m.lastgroup or 0]
        if kind == "num":
            tokens.append(("num", Fraction(int(value) if value.isdigit() else value)))
        elif kind in ("cmd", "text", "word"):
            tokens += _name_tokens(value, kind)
        elif kind:
            tokens.append(("word" if value in _UNIT else "op", _SAME.get(value, value)))
    return tokens


def _name_tokens(run, kind):
    r"""Outside \text two or three small letters that are no word are a variable each; dx is one."""
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
    known = low in _SHORT_WORDS or low in _NUMBERS or low in _SCALES or low in _UNIT
    capitals = run.isupper() and short and not known
    if not capitals and (kind == "text" or known or not short or run.istitle()):
        return [("word", low)]
    return [("var", letter) for letter in re.findall("^d[A-Za-z]$|[A-Za-z]'*", run)]


def _number_in_words(tokens):
    """("num", q) of one hundred five, twenty five, 5 million; None of anything else."""
    total = group = _ZERO
    for i, (kind, value) in enumerate(tokens):
        number = _NUMBERS.get(value) if kind == "word" else None
        if kind == "num" and i == 0:
            group = value
        elif number is not None and group % (100 if number > 9 or group % 100 == 10 else 10) == 0:
            group += number
        elif value in _PARTS and i and i == len(tokens) - 1:
            return "num", (total + group) / _PARTS[value]
        elif value in _SCALES:
            scaled = (group or _ONE) * _SCALES[value]
            total, group = (total, scaled) if value == "hundred" else (total + scaled, _ZERO)
        else:
            return None
    return "num", total + group


# --- the parser: lists, relations and sides are split at their signs, sums are read by descent ---

_CLOSERS = {"(": ")]", "[": ")]", "{": "}", "⦃": "⦄", "|": "|", "⟦": "⟧", "⌊": "⌋", "⌈": "⌉"}
_ENCLOSED = {"|": "abs", "⌊": "floor", "⌈": "ceil"}
_ZERO, _ONE, _END = Fraction(0), Fraction(1), ("end", "")
_TURNS = {"±": "+", "∓": "-"}, {"±": "-", "∓": "+"}
_PLAIN = re.compile(r"-?(?:\d{1,300}(?:\.\d{1,300})?|\.\d{1,300})", re.A)
_PLACEHOLDERS = {"proof", "notfound", "not found", "n/a", "no answer", "null", "unknown"}
_OPERATIONS = {"+": operator.add, "*": operator.mul}
_OPERATIONS |= {"mod": operator.mod, "binom": math.comb, "!": math.factorial}
_TURN = str.maketrans("<>≤≥", "><≥≤")
_REALS, _X = ("var", "setR"), ("var", "")  # all numbers, and the one that is tested
_EXPRESSIONS = set("num var + * inv ^ ! mod binom call".split())


def _nest(tokens):
    """Each bracketed part as one token, ("group", (brackets, tokens)); a lone bar stays a sign."""
    stack = [("", [])]  # opening bracket, tokens after it
    for kind, value in [*tokens, _END]:
        closes = kind == "end" or kind == "op" and value in ")]}⦄⟧⌋⌉"
        while closes and stack[-1][0] == "|":  # P(A|B)
            stack[-2][1].extend([("op", "|"), *stack.pop()[1]])
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
    """A value and the tree of its unit: km/h, square feet. 2 hours 30 minutes are 150 minutes."""
    parts, value, unit, power = [], [], [], 1
    for (kind, name), after in zip([*tokens, _END], [*tokens[1:], _END, _END], strict=True):
        in_power = unit[-1:] == [("op", "^")] or unit[-2:] == [("op", "^"), ("op", "-")]
        if value and (kind in ("word", "letter") or kind == "var" and unit) and name in _UNIT:
            squared = [("op", "^"), ("num", Fraction(power))] if power > 1 else []
            unit, power = [*unit, ("var", _UNIT[name][0]), *squared], 1
        elif value and kind == "word" and name in _POWERS:
            power = _POWERS[name]
        elif in_power or value and kind == "op" and name in "/*×^" and (unit or after[0] == "word"):
            unit.append((kind, name))
        else:
            if unit:
                unit = [("num", _ONE)] * (unit[0][0] == "op") + unit
                parts.append(("quantity", _expression(value, depth), _expression(unit, depth)))
                value, unit = [], []
            value.append((kind, name))
    if len(parts) < 2 and (not parts or value == [_END]):
        return parts[0] if parts else _expression(tokens, depth)
    sizes = [_UNIT[u[1]][1:] for _, number, u in parts if (number[0], u[0]) == ("num", "var")]
    falling = len(parts) == len(sizes) == len(set(sizes)) and sizes == sorted(sizes, reverse=True)
    if value != [_END] or not falling or len({dimension for dimension, _ in sizes}) > 1:
        raise _Unreadable("several quantities")
    total = sum(number[1] * size for (_, number, _), (_, size) in zip(parts, sizes, strict=True))
    return ("quantity", ("num", total / sizes[-1][1]), parts[-1][2])


def _negative(tree):
    return ("num", -tree[1]) if tree[0] == "num" else ("*", (("num", -_ONE), tree))


class _Sum:
    """Recursive descent over the tokens of one side. Trees: (num, q), (var, name), (+, parts),
    (*, factors), (inv, x), (^, x, y), (!, x), (mod, x, y), (binom, n, k), (call, name, x),
    (set, "", items), (seq, brackets, items)."""

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
        tree, signs = self.atom(), ""
        while sign := self.take(*"^!°%"):
            if sign in signs:  # x^2^3, and chains without end
                raise _Unreadable("a sign twice")
            signs += sign
            more = (self.signed(self.atom),) if sign == "^" else ()
            tree = ("*", (tree, ("var", sign))) if sign in "°%" else (sign, tree, *more)
        return tree

    def atom(self):
        kind, value = self.peek()
        readers = {"group": self.group, "fn": self.call, "built": self.built, "var": self.name}
        readers |= {"letter": self.name, "num": lambda value: ("num", value)}
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
        start = self.at
        power = f"^{self.signed(self.atom)}" if applied and self.take("^") else ""
        if self.opens("("):
            inside = self.peek()[1][1]
            signs = {sign for kind, sign in inside if kind == "op"}
            if applied or capital and (len(inside) == 1 or signs & set(",|<>=≤≥")):
                self.at += 1
                argument = _answer(inside, self.depth, strict=False)
                if argument[0] in _EXPRESSIONS and argument[0] != "var":  # 0<f(x)<1 is (0,1)
                    return ("call", value + power, argument)
                return ("var", f"{value}{power}{argument}")
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
    tree = any(kind == "word" for kind, _ in tokens) and _number_in_words(tokens) or reader.sum()
    if reader.at < len(tokens) and reader.at:
        raise _Unreadable("something is left")
    return tree


def _ordered(factors):
    """The product; capitals keep their order, as points (AB) and matrices (A^{-1}B) need it."""
    bases = [(f[1] if f[0] == "^" else f, f) for f in factors]
    capitals = [(b, f) for b, f in bases if b[0] == "var" and re.fullmatch("[A-Z]", b[1])]
    if len(set(capitals)) > 1:
        name = "".join(b[1] + (f"^{f[2]}" if b != f else "") for b, f in capitals)
        factors = [*(f for b, f in bases if (b, f) not in capitals), ("var", name)]
    return ("*", tuple(factors)) if len(factors) > 1 else factors[0]


@lru_cache(maxsize=4096)
def _read(text):
    """([(tokens, tree)], more of a response: (B) 5 is also 5 and B, 5 m also 5 metres; remark)."""
    text = text if text.isascii() else _ascii(text)
    for keys, pattern, new in _RULES:
        for key in keys:
            if key in text:
                text = pattern.sub(new, text)
                break
    text, _, remark = text.partition("∀")
    said = re.sub(r'["()∀]|(?<!\\)\b(?!and|or\b)[a-z]{2,}\b', " ", remark.lower()).strip(" ,.")
    if not (_RELATION.fullmatch(said) and is_value(said)):  # what other words say is not known
        said = next((sign for word, sign in _MEANINGS.items() if word in remark.lower()), "")
    texts, more = dict.fromkeys([re.sub(_JOINED, _REPLACEMENTS["DIGITS"], text), text]), []
    if m := re.fullmatch(_MARKED, text, re.S):
        more += [m[3], m[2]]
    if m := re.fullmatch(_MEASURED, text.strip()):
        more.append(m[1] + re.sub("[A-Za-z]", r'"\g<0>"', m[2]))
    crossed = re.search(r"\\(?:mathbf|boldsymbol|bm)\b.*(?:\\times|×)", text, re.S)
    tokens = [[tuple(_tokens(one)) for one in some] for some in (texts, more)]
    read = [[(t, None if crossed else _tree(t)) for t in some if t] for some in tokens]
    return *read, said


def _tree(tokens):
    """The tree of an answer, or None. a ± b is read twice, and is the list a + b, a - b."""
    tokens = tokens[tokens[0] == ("op", "≈") :]
    turns = _TURNS if ("op", "±") in tokens or ("op", "∓") in tokens else ({},)
    try:
        read = [[(kind, turn.get(value, value)) for kind, value in tokens] for turn in turns]
        trees = [_answer(_nest(turned), 0, strict=False) for turned in read]
    except _Unreadable:
        return None
    if trees[0] == trees[-1]:
        return trees[0]
    kind = trees[0][0] if {tree[0] for tree in trees} in ({"list"}, {"set"}) else ""
    items = [item for tree in trees for item in (tree[2] if kind else (tree,))]
    return (kind or "list", ",", tuple(dict.fromkeys(items)))


class _Point(dict):
    """Values of the constants, and random ones of variables; counts the work of the arithmetic."""

    def __init__(self, seed, signs, work, known=()):
        super().__init__({"pi": math.pi, "e": math.e, "i": 1j}, **signs, **dict(known))
        self.seed, self.signs, self.work, self.free = seed, signs, work, set()

    def __missing__(self, name):
        if name in ("infty", "emptyset", "setR"):
            raise _Unreadable(f"{name} is no number")
        self.free.add(name)
        low = 500 if self.seed < 6 else -6000
        self[name] = Fraction(random.Random(f"{self.seed} {name}").randint(low, 6000), 997)
        return self[name]

    def bounded(self, value):
        parts = value.as_integer_ratio() if isinstance(value, Fraction) else ()
        bits = sum(map(int.bit_length, parts))
        self.work[0] -= bits + 50
        if bits > 2 * MAX_BITS or self.work[0] < 0:
            raise _Unreadable("too large")
        return value


def _value(tree, point):
    """Value of an expression at a point: a Fraction where it can be, else a float or complex."""
    kind, *parts = tree
    if kind in ("num", "var"):
        return point.bounded(parts[0] if kind == "num" else point[parts[0]])
    if kind == "call":
        return _call(*parts, point)
    if kind not in _EXPRESSIONS:
        raise _Unreadable(f"{kind} inside an expression")
    values = [_value(part, point) for part in (parts[0] if kind in ("+", "*") else parts)]
    if kind in ("mod", "!", "binom"):
        most = 2200 if kind == "!" else MAX_BITS
        whole = all(isinstance(v, Fraction) and v.denominator == 1 for v in values)
        if not whole or kind != "mod" and not all(0 <= v <= most for v in values):
            raise _Unreadable("no whole number, or none of that size")
        return point.bounded(Fraction(_OPERATIONS[kind](*map(int, values))))
    if kind == "inv":
        return point.bounded(1 / values[0])
    return reduce(lambda *two: point.bounded(_OPERATIONS.get(kind, _power)(*two)), values)


def _call(name, argument, point):
    inner = _Point(point.seed, point.signs, point.work)
    inner["°"] = math.pi / 180 if name in _TRIG else point["°"]  # sin 90° always means degrees
    value = _value(argument, inner)
    point.free |= inner.free
    if name == "abs":
        return abs(value)
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](complex(value))
    if name not in ("floor", "ceil") or inner.free:  # unknown, or the same at too many points
        key = str(value) if isinstance(value, Fraction) else f"{complex(value):.9g}"
        return point[f"{name}({key})"]
    if isinstance(value, complex) or abs(value) > 1e9:
        raise _Unreadable("no real number")
    return Fraction(getattr(math, name)(value))


def _power(base, exponent):
    root = exponent.denominator if isinstance(exponent, Fraction) else 0
    if isinstance(base, Fraction) and (root == 1 or root == 2 and base >= 0):
        if base == 0 and exponent <= 0:
            raise ZeroDivisionError
        parts = base.as_integer_ratio()
        if abs(base) != 1 and abs(exponent) * max(map(int.bit_length, parts)) > MAX_BITS:
            raise _Unreadable("too large")
        exact = base if root == 1 else Fraction(*map(math.isqrt, parts))
        if exact**root == base:
            return exact ** (exponent.numerator if abs(base) != 1 else exponent.numerator % 2)
    real = complex(base).real
    if complex(base).imag or isinstance(exponent, complex) or real < 0 and not root % 2:
        value = complex(base) ** complex(exponent)
    else:  # the real cube root: that of -8 is -2
        sign = -1 if real < 0 and exponent.numerator % 2 else 1
        value = sign * abs(real) ** float(exponent)
    if value == 0 and base != 0:
        raise OverflowError("underflow")
    return value


def _is_name(tree):
    """Can it name a value, before "="? x, f(2), AB, |AB|, NO/BO, (x, y), words, text."""
    kind = tree[0]
    if kind == "call":
        return tree[1] not in _FUNCTIONS and (tree[1] != "abs" or str(tree[2][1]).isupper())
    if kind in ("*", "seq", "inv"):
        parts = tree[1:] if kind == "inv" else tree[-1]
        return _is_name(parts[0]) and all(_is_name(p) or p[0] == "num" for p in parts)
    return kind in ("words", "text") or kind == "var" and tree[1] not in ("infty", "setR")


def _values(tree):
    """What a chain `x = a = b` gives for x, without what follows ≈; () for another relation."""
    if tree[0] != "rel":
        return (tree,)
    _, signs, sides = tree
    start = int(_is_name(sides[0]))
    end = signs.find("≈", start) + 1
    return () if set(signs) - set("=≈∈") else sides[start : end or None]


def _close(a, b, free):
    """Equal, or within the rounding of floats; a long decimal is not close to a float."""
    if a == b or isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    if not free and any(isinstance(v, Fraction) and v.denominator > 10**5 for v in (a, b)):
        return False
    return abs(a - b) <= max(1e-13, (1e-9 if free else 1e-11) * max(abs(a), abs(b))) < math.inf


class _Comparison:
    """Equality of trees. `signs`: what ° and % count for; with an i, complex values are meant."""

    def __init__(self, signs, tokens, work):
        self.signs, self.has_i, self.work = signs, ("var", "i") in tokens, work

    def agree(self, left, right, ratio=False):
        """Equal at random points where both exist; with `ratio`, always with the same quotient."""
        agreed, first = 0, None
        for seed in range(14):
            point = _Point(seed, self.signs, self.work)
            try:
                a, b = _value(left, point), _value(right, point)
                first = first or (a, b)
                if ratio:
                    a, b = a * first[1], b * first[0]
            except (ArithmeticError, ValueError):
                continue  # outside the domain of one of them
            if not _close(a, b, point.free) or ratio and not all(first):
                real = any(isinstance(v, Fraction) or abs(v.imag) <= 1e-12 * abs(v) for v in (a, b))
                if self.has_i or real or not point.free:
                    return False
            elif not point.free:
                return True
            else:
                agreed += 1
        return agreed >= 3

    def equal(self, left, right):
        kinds = {left[0], right[0]}
        if left == right or kinds == {"num"}:
            return left == right
        if "quantity" in kinds:  # where both have a unit, the same one
            same = len(kinds) == 2 or left[2] == right[2] or self.agree(left[2], right[2])
            return same and self.equal(*(t[1] if t[0] == "quantity" else t for t in (left, right)))
        if kinds == {"rel"}:  # part by part, also turned; equations that vanish together
            turned = ("rel", left[1][::-1].translate(_TURN), left[2][::-1])
            if any(t[1] == right[1] and self.equal_all(t[2], right[2]) for t in (left, turned)):
                return True
            differences = [("+", (t[2][0], _negative(t[2][-1]))) for t in (left, right)]
            if left[1] == right[1] == "=" and self.agree(*differences, ratio=True):
                return True
        if "rel" in kinds and (len(kinds) == 2 or left[2][0] == right[2][0]):
            pairs = [(a, b) for a in _values(left) for b in _values(right)]
            if pairs and all(self.equal(*pair) for pair in pairs):
                return True
        if (kinds & {"rel", "union"} or _REALS in (left, right)) and self.same_set(left, right):
            return True
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

    def rows(self, tree):
        """(name or "", rows) of a set of numbers or of inequalities in one name: the numbers for
        which each (left, sign, right) of one row is true. No rows where it is neither."""
        kind, signs, sides = (*tree, ())[:3]
        name, rows = "", []
        if tree == _REALS:
            rows = [[]]
        elif kind == "set":
            rows = [[(_X, "=", value)] for value in sides]
        elif kind == "seq" and len(sides) == 2 and signs[0] in "([":
            below, above = ("<≤"[sign in "[]"] for sign in signs)
            rows = [[(sides[0], below, _X), (_X, above, sides[1])]]
        elif kind in ("union", "list"):
            names, parts = zip(*map(self.rows, sides), strict=True)
            if all(parts) and len(set(names)) == 1 and (names[0] or kind == "union"):
                name, rows = names[0], sum(parts, [])
        elif kind == "rel" and re.fullmatch("[<≤]{1,2}|[>≥]{1,2}|≠|∈", signs):
            names = set().union(*(self.number(side)[1] for side in sides))
            if len(names) == 1:
                name, rows = names.pop(), [list(zip(sides, signs, sides[1:], strict=False))]
            if signs == "∈":
                rows = self.rows(sides[1])[1] if sides[0] == ("var", name) else []
        return name, rows

    def same_set(self, left, right):
        """Do two sets hold the same numbers? Tried at each end, between the ends and beyond."""
        (name, rows), (other, others) = self.rows(left), self.rows(right)
        if not (rows and others) or len(rows + others) > 50 or name and other and name != other:
            return False
        name, ends = name or other, set()
        for relation in sum(rows + others, []):
            start, one, *far = (self.gap(relation, name, x)[0] for x in (0, 1, -997, 997))
            if abs(start) != math.inf:
                slope = one - start
                line = start - 997 * slope, start + 997 * slope
                if not slope or not all(map(_close, far, line, (False, False))):
                    return False  # no straight line: where it is zero is not known
                ends.add(-start / slope)
        points = sorted({end + step for end in ends or {0} for step in (-1, 0, 1)})
        points += [(a + b) / 2 for a, b in zip(points, points[1:], strict=False)]
        held = []
        for kind, parts in ((left[0], rows), (right[0], others)):
            true = [[all(self.gap(r, name, x)[1] for r in row) for row in parts] for x in points]
            if kind == "list" and max(map(sum, true)) > 1:
                return False  # x > 1, x < 2 means "and"
            held.append(list(map(any, true)))
        return held[0] == held[1] and any(held[0])

    def gap(self, relation, name, x):
        """Where the name has the value x: left minus right, 0 if they are close; is it true?"""
        left, right = (self.number(t, {"": _ZERO + x, name: _ZERO + x})[0] for t in relation[::2])
        gap = 0 if _close(left, right, False) else left - right
        return gap, relation[1] in ("<≤≠" if gap < 0 else ">≥≠" if gap > 0 else "≤≥=")

    def number(self, tree, known=()):
        """The real value of a constant, also an infinite one, or nan; the names in it."""
        point = _Point(0, self.signs, self.work, {"infty": math.inf, **dict(known)})
        try:
            value = _value(tree, point)
        except (ArithmeticError, ValueError):
            value = math.nan
        return math.nan if point.free or value.imag else value.real, point.free


def same_answer(response: str, gold: str) -> bool:
    """Are two texts the same answer? % and ° count as 1 on both sides, or as 1/100 and pi/180."""
    response, gold = response.strip(), gold.strip()
    if response == gold:
        return True
    if _PLAIN.fullmatch(response) and _PLAIN.fullmatch(gold):
        return Decimal(response) == Decimal(gold)
    (mine, more, said), (theirs, _, gold_said), work = _read(response), _read(gold), [MAX_WORK]
    alike = said and gold_said and (len(said) == 1) == (len(gold_said) == 1)
    if alike and not same_answer(said, gold_said):  # 1 (x>0) and 1 (x<0), 1 (loss) and 1 (gain)
        return False
    return any(_same_reading(*one, *other, work) for one in mine + more for other in theirs)


def _same_reading(tokens, tree, gold_tokens, gold_tree, work):
    if tokens == gold_tokens or None in (tree, gold_tree):
        return tokens == gold_tokens
    both, readings = tokens + gold_tokens, [{"°": _ONE, "%": _ONE}]
    if ("op", "°") in both or ("op", "%") in both:
        readings.append({"°": math.pi / 180, "%": Fraction(1, 100)})
    try:
        return any(_Comparison(signs, both, work).equal(tree, gold_tree) for signs in readings)
    except (_Unreadable, OverflowError):
        return False  # beyond a bound


def is_value(text: str) -> bool:
    """Can an answer be read as something else than text?"""
    return any(tree and "'text'" not in repr(tree) for _, tree in sum(_read(text.strip())[:2], []))


@lru_cache(4096)
def gold_fault(text: str) -> str:
    """Why a gold answer can never be matched, to follow "a math answer"; "" where it can."""
    if "####" in text or "\\boxed" in text:
        return "is the bare value, without #### or \\boxed"
    if re.sub(r"\\text\{(.*)\}", r"\1", text.strip().strip(".")).lower() in _PLACEHOLDERS:
        return "is a value, no placeholder"
    too_long = len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", text)) > 12
    return "is a value or a short text" if too_long else ""
