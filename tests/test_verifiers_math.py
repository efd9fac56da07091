"""Math verifier: equality over a table, golds of real data, extraction, bounds, feedback."""

import random
import re
import time

import pytest

import math_answers
import verifiers
from verifiers import check_answer, verify

MATH_FILES = (
    "gsm8k_train",
    "gsm8k_test",
    "math_train",
    "math_train_worked",
    "math500_test",
    "aime_train",
    "aime24",
    "aime25",
    "hmmt_feb25",
)

EQUAL = [  # (gold, response) with the same value
    # integers and thousands separators
    ("31,250", "31250"),
    ("31250", "31,250"),
    (r"24{,}000", "24000"),
    (r"1,\!722", "1722"),
    ("1722", r"1\,722"),
    ("1,000,000", "1000000"),
    (r"11,\! 111,\! 111,\! 100", "11111111100"),
    ("12345", "12 345"),
    ("73", "073"),
    ("5", "+5"),
    ("1234", "1,234"),
    ("1, 234", "1,234"),
    ("5", "5."),
    ("5", "$5$"),
    ("-3", "−3"),
    ("1000", r"10^3"),
    # decimals, fractions, mixed numbers
    ("0.5", r"\frac12"),
    (r"\frac{14}{3}", "14/3"),
    (r"\frac12", r"\dfrac{1}{2}"),
    (r"\tfrac{3}{4}", ".75"),
    (r"-\frac 32", "-1.5"),
    (r"\frac1{72}", "1/72"),
    (r"\frac{360}7", r"\frac{360}{7}"),
    ("2/3", r"\frac{4}{6}"),
    (r"2\frac{1}{2}", r"\frac{5}{2}"),
    (r"-15\frac{3}{5}", "-15.6"),
    (r"3\frac18", "25/8"),
    ("2.5", "2 1/2"),
    ("0.50", "0.5"),
    (r"\frac{-1}{2}", r"-\frac{1}{2}"),
    (r"\frac{12}{5,\!525}", "12/5525"),
    ("0.1", r"\frac{1}{10}"),
    # percent, degrees, currency, units
    ("50", r"50\%"),
    (r"50\%", "50"),
    (r"50\%", "0.5"),
    (r"\frac12", r"50\%"),
    (r"0.56 = 56\%", r"56\%"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", r"90^\circ"),
    ("90", r"90\text{ degrees}"),
    (r"90^\circ", "90°"),
    (r"90^\circ", r"\frac{\pi}{2}"),
    (r"\$42409", "42409"),
    (r"\$ 54.60", "54.6"),
    ("5", r"\$5"),
    (r"-\$0.50", "-0.5"),
    (r"\$5", "5 dollars"),
    (r"10\text{ cm}", "10"),
    ("10", r"10\text{ cm}"),
    (r"144 \mbox{ m}^3", r"144\text{ cubic meters}"),
    (r"2 \text{ euros}", "2"),
    (r"100\text{ square units}", r"100\text{ units}^2"),
    (r"\approx 8.24 \text{ mph}", "8.24"),
    (r"\$\dfrac23 \approx \$0.67", "2/3"),
    ("12", "12 apples"),
    (r"7\text{ hours}.", "7 hours"),
    (r"320000 \mbox{ acres}", "320,000"),
    ("5000000", r"5\text{ million}"),
    (r"34\text{ sq. units}", "34"),
    ("3", r"3\text{ m/s}"),
    # surds, powers, constants
    (r"\sqrt{12}", r"2\sqrt{3}"),
    (r"10\sqrt3", r"\sqrt{300}"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt2}{2}"),
    (r"\sqrt[3]{-8}", "-2"),
    (r"\sqrt[4]{8}", "8^{1/4}"),
    (r"12^{1/7}", r"\sqrt[7]{12}"),
    (r"\frac{\sqrt{3}}{4\sqrt{2}-3}", r"\frac{4\sqrt6+3\sqrt3}{23}"),
    (r"\sqrt{4}", "2"),
    (r"2^{10}", "1024"),
    ("2^{25} \\cdot 26!", "26! * 2**25"),
    (r"2^{4950}", r"4^{2475}"),
    ("10*pi", r"10\pi"),
    (r"\frac{3}{4}\pi", r"\frac{3\pi}{4}"),
    (r"\pi/4", "π/4"),
    ("e^2", r"e \cdot e"),
    ("sqrt(3)/2", r"\frac{\sqrt{3}}{2}"),
    (r"\sqrt{5+2\sqrt6}", r"\sqrt2+\sqrt3"),
    ("2^{-1}", "0.5"),
    ("-3^2", "-9"),
    (r"2\cdot10^{3}", r"2\times 10^3"),
    # complex numbers
    ("1+2i", "2i+1"),
    (r"\frac{i}{5}", "0.2i"),
    ("i^2", "-1"),
    (r"-32 + 32i \sqrt{3}", r"32(-1+\sqrt{3}i)"),
    ("(1+i)^2", "2i"),
    # logs, trig, factorials, binomials
    (r"\log_2 8", "3"),
    (r"\log_{10} 100", r"\log 100"),
    (r"\ln e^3", "3"),
    (r"\cos 60^\circ", r"\frac12"),
    (r"\sin\frac{\pi}{6}", "0.5"),
    (r"\tan 15^\circ", r"2-\sqrt3"),
    (r"\cos 58^\circ", r"\sin 32^\circ"),
    (r"\sin^2 x", r"1-\cos^2 x"),
    (r"\tan x", r"\frac{\sin x}{\cos x}"),
    (r"2 \sin 5x \cos x", r"\sin 6x + \sin 4x"),
    (r"\sec x", r"\frac{1}{\cos(x)}"),
    (r"\sin^{-1} 1", r"\frac{\pi}{2}"),
    ("5!", "120"),
    (r"\binom{5}{2}", "10"),
    (r"\frac{1}{2004!}", r"\frac{1}{2004 \cdot 2003!}"),
    ("|{-3}|", "3"),
    # expressions in variables
    (r"-29x^5(7x^6-2)", r"58x^5-203x^{11}"),
    ("(x+1)(x+2)", "x^2+3x+2"),
    (r"\frac{2x-7}{(x+1)(x-2)}", r"\frac{7-2x}{(x+1)(2-x)}"),
    ("2x", "x*2"),
    (r"10x\sqrt{21x}", r"\sqrt{2100x^3}"),
    (r"\sqrt{x^2}", "|x|"),
    ("a+b+c", "c+a+b"),
    (r"2^{n-1}", r"\frac{2^n}{2}"),
    ("x_1+x_2", "x_2+x_{1}"),
    ("3 - 2f(x)", "-2f(x)+3"),
    (r"\pi r^2", r"r^2\pi"),
    ("(3y - 5)^2", "(5-3y)^2"),
    ("2xy", "2yx"),
    # plus-minus, equations
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
    (r"\pm 2", "2,-2"),
    ("x=5", "5"),
    ("5", "x = 5"),
    ("x=5", "x = 10/2 = 5"),
    ("y = 2x + 3", "2x - y + 3 = 0"),
    ("y=2x+3", "2x+3"),
    ("x^2+y^2=13", "2x^2+2y^2=26"),
    ("AB=9, CD=4", "CD=4, AB=9"),
    ("x=2", r"x \approx 2"),
    ("1,-2", "x=1, x=-2"),
    ("10x - 4y - 5z - 20 = 0", "10x - 4y = 5z + 20"),
    (r"f(x)=x^2", "x^2"),
    (r"-80\leq g(x)\leq 82", r"82 \ge g(x) \ge -80"),
    ("f(2) < f(1) < f(4)", "f(4) > f(1) > f(2)"),
    ("(x,y)=(1,2)", "(1,2)"),
    # tuples, intervals, unions, sets, lists, matrices
    ("(3, -1)", r"\left(3,-1\right)"),
    (r"(\frac12, 2)", "(0.5,2)"),
    ("[0,3)", r"\left[0, 3\right)"),
    (r"(-\infty, 3)", "(-oo, 3)"),
    (r"(-\infty, -1) \cup (4, \infty)", r"(4,\infty)\cup(-\infty,-1)"),
    (r"\{4,5,7\}", r"\{7,5,4\}"),
    ("1,-2", "-2, 1"),
    ("1,-2", r"\{-2,1\}"),
    (r"\{1,1,2\}", r"\{2,1\}"),
    (r"\{2,1\}", r"\{1,2,\frac22\}"),
    (r"\{1\pm\sqrt2\}", r"\{1-\sqrt2,1+\sqrt2\}"),
    (r"12\text{ and }13", "12, 13"),
    (r"2, 3, \text{ and } 4", "4,3,2"),
    (r"-2 \text{ or } -12", "-12,-2"),
    (r"(-\infty,4]", r"x \in (-\infty, 4]"),
    (r"\{-1\} \cup [0,7)", r"[0,7)\cup\{-1\}"),
    (r"\begin{pmatrix} 1/2 \\ 2 \end{pmatrix}", r"\begin{bmatrix}0.5\\2\end{bmatrix}"),
    ("70,110", "110, 70"),
    ("(1,234)", "(1, 234)"),
    (
        r"\begin{pmatrix} 1 & -1 \\ 1 & \phantom -1 \end{pmatrix}",
        r"\begin{pmatrix}1&-1\\1&1\end{pmatrix}",
    ),
    (r"\emptyset", r"\varnothing"),
    # bases, ratios, times
    ("12_5", r"12_{5}"),
    ("12_5", "7"),
    (r"\text{A5}_{11}", "A5_{11}"),
    (r"0.0011_{2}", "3/16"),
    ("1 : 2", "1:2"),
    (r"05\!:\!00", "5:00"),
    (r"8\!:\!34 \text{ p.m.}", "8:34 pm"),
    # option letters, words, wrappers, choice marks
    (r"\text{B}", "B"),
    (r"\text{(B)}", "B"),
    ("B", r"\textbf{(B)}"),
    (r"\text{(E)},", "(E)"),
    ("C", r"\textbf{(C)}\ 42"),
    ("42", r"\textbf{(C)}\ 42"),
    ("42", "(C) 42"),
    ("42", "C. 42"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{Evelyn}", r"\textbf{evelyn}"),
    (r"\text{A, B}", "B, A"),
    (r"\text{June 20}", "June 20"),
    (r"\mbox{four}", "4"),
    (r"\mathbf{2340}", "2340"),
    ("5", r"\mathbf{5}"),
    ("5", r"\fbox{5}"),
    (r"\text{two lines}", r"\text{Two lines}"),
    (r"\text{13}", "13"),
    (r"\overline{CD}", r"\overline{CD}"),
    ("7p+4e", "4e+7p"),
]

DIFFERENT = [  # (gold, response) with different values
    ("31,250", "31"),
    ("1,234", "234"),
    ("1234", "1, 234"),
    ("(1,234)", "1234"),
    (r"1,\!234", "1, 234"),
    ("5", "-5"),
    ("5", "55"),
    ("55", "5 5"),
    ("10", "1 0"),
    ("1.5", "1,5"),
    ("1000", "100"),
    ("12", "1,2"),
    ("5", "5, 5"),
    ("5", ""),
    ("100", "10^3"),
    ("5", "5 6"),
    ("2/3", "0.67"),
    ("2/3", "0.6666666667"),
    ("1/3", "0.333"),
    (r"\frac12", r"\frac21"),
    (r"2\frac{1}{2}", "1"),
    (r"2\frac12", "21/2"),
    (r"\frac{14}{3}", "4.67"),
    (r"0.\overline{3}", "0.3"),
    ("0.1", "0.10001"),
    (r"-\frac{1}{2}", r"\frac{1}{2}"),
    ("1/72", r"\frac{17}{2}"),
    (r"50\%", "5000"),
    ("50", "0.5"),
    (r"50\%", r"0.5\%"),
    (r"5\%", "0.5"),
    (r"90^\circ", "9"),
    ("90", r"\frac{\pi}{2}"),
    (r"90^\circ", r"\pi"),
    (r"\$5", "500"),
    (r"\$5", r"5\text{ cents}"),
    (r"10\text{ cm}", r"10\text{ inches}"),
    (r"10\text{ cm}", r"10\text{ m}"),
    (r"2\text{ miles}", "2 km"),
    (r"8\!:\!34 \text{ p.m.}", "8:34 a.m."),
    (r"9\text{ a.m.}", "9 pm"),
    (r"5\text{ million}", "5"),
    ("12", r"12\text{ dozen}"),
    (r"\sqrt{2}", "1.41421356"),
    (r"\sqrt{2}", "1.414213562373095"),
    (r"\pi", "3.14159"),
    (r"\pi", "22/7"),
    (r"\pi", "3.141592653589793"),
    (r"\sqrt{3}", r"\sqrt{2}"),
    (r"2\sqrt3", r"3\sqrt2"),
    (r"2\sqrt{3}", r"\sqrt[2]{3}"),
    (r"\sqrt{12}", "12"),
    ("2^{10}", "20"),
    (r"2^{4950}", r"2^{4951}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2005!}"),
    (r"\frac{1}{2004!}", "0"),
    ("2^{100}+1", "2^{100}"),
    (r"10\pi", "10"),
    ("e", "2.718281828"),
    ("e^2", "2e"),
    (r"\sqrt[3]{8}", r"\sqrt{8}"),
    ("-9", "(-3)^2"),
    ("8^{1/3}", "8/3"),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5}"),
    (r"\pi^2", r"2\pi"),
    ("1+2i", "1-2i"),
    ("1+2i", "2+i"),
    ("i", "1"),
    ("i", "-i"),
    ("2i", "2"),
    (r"\sqrt{-2}", r"\sqrt{-3}"),
    (r"\log_2 8", r"\log_8 2"),
    (r"\ln 2", r"\log 2"),
    (r"\cos 60^\circ", r"\cos 60"),
    (r"\sin x", r"\cos x"),
    (r"\sin^2 x", r"\sin x^2"),
    ("5!", "5"),
    (r"\binom{5}{2}", r"\frac{5}{2}"),
    (r"\tan x", r"\cot x"),
    (r"\sin^{-1} x", r"\frac{1}{\sin x}"),
    ("4!", "16"),
    ("(x+1)(x+2)", "x^2+3x+3"),
    ("x^2", "2x"),
    ("x", "y"),
    ("2x", "2X"),
    ("x", "-x"),
    (r"\sqrt{x^2}", "x"),
    ("|x|", "x"),
    ("x_1", "x_2"),
    ("a+b", "ab"),
    ("x+1", "x"),
    (r"\frac{x}{y}", r"\frac{y}{x}"),
    ("2^n", "n^2"),
    ("3 - 2f(x)", "3 - 2f(y)"),
    ("x^{10}", "x^{11}"),
    ("x+10^{-20}", "x"),
    ("0", "x-y"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}"),
    (r"\pm 2", "2"),
    (r"\pm 2", "2,2"),
    (r"1\pm 2i", r"2 \pm i"),
    ("x=5", "x=6"),
    ("x=5", "y=5"),
    ("5", "x=6"),
    ("5", "5=6"),
    ("5", "2+2=5"),
    ("5", "x=5=6"),
    ("y=2x+3", "y=2x-3"),
    ("x^2+y^2=13", "x^2+y^2=14"),
    ("x+y=0", "0=0"),
    ("AB=9, CD=4", "AB=4, CD=9"),
    ("y=2x+3", "y=2x+3, y=1"),
    (r"x \ge 5", "x > 5"),
    ("f(2) < f(1) < f(4)", "f(1) < f(2) < f(4)"),
    ("5", r"x \ne 5"),
    ("5", "x > 5"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", r"\{1,2\}"),
    ("1,2", "(1,2)"),
    ("(1,2)", "[1,2]"),
    ("[0,3)", "[0,3]"),
    ("(0,3]", "[0,3)"),
    ("(1,2,3)", "(1,2)"),
    ("(1,2)", "1"),
    (r"(-\infty, 3)", r"(\infty, 3)"),
    (r"(-\infty, 3)", "(3, -\\infty)"),
    (r"(1,2)\cup(3,4)", "(1,2)"),
    (r"(1,2)\cup(3,4)", r"(1,2)\cup(3,5)"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    (r"\{1\}", r"\{2\}"),
    ("1,1,2", "1,2"),
    ("1,1,2", "1,2,2"),
    ("1,1,2", r"\{1,2\}"),
    (r"\{1\pm 2\}", r"\{3\}"),
    (r"\{1,1,2\}", r"\{1,1\}"),
    (r"\{1,2\}", r"\{1,1,3\}"),
    ("1,-2", "1,2"),
    ("1,2,3", "1,2"),
    ("1", "1,2"),
    ("1,2", "2"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "1"),
    (r"(5,\infty)", r"x \ge 5"),
    (r"[1,2)", r"1 < x < 2"),
    (r"\emptyset", "0"),
    (r"\infty", r"-\infty"),
    ("70,110", "70"),
    (r"\infty", "1000000"),
    ("12_5", "12"),
    ("12_5", "12_6"),
    ("12_5", "21_5"),
    ("1011_2", "1011"),
    (r"\text{A5}_{11}", r"A6_{11}"),
    ("1:2", "2:1"),
    ("9:24", "9:42"),
    ("19_5", "14"),
    (r"\text{B}", "C"),
    ("B", "(C)"),
    ("B", r"\text{A, B}"),
    (r"\text{A, B}", "A"),
    ("42", "(C) 43"),
    ("B", "(C) 42"),
    ("A", "a"),
    ("b", "B"),
    (r"\text{Evelyn}", "Dana"),
    (r"\text{even}", r"\text{odd}"),
    (r"\text{even}", r"\text{not even}"),
    (r"\text{June 20}", "June 21"),
    ("5", r"\text{not }5"),
    (r"\mbox{four}", "5"),
    (r"\text{two lines}", "2"),
    (r"\overline{CD}", "CD"),
    ("5", r"5\text{ or }6"),
    ("5", "five or six"),
    ("LQSX", "LQXS"),
    ("5", "1/0"),
    ("0", r"\frac{x}{x-x}"),
    ("1", "0^0"),
    ("5", "nan"),
    ("5", "inf"),
    ("5", "_"),
    ("5", r"\boxed{6}"),
    ("25", r"5^{2^1}0"),
]


def boxed(text):
    return "So the answer is $\\boxed{" + text + "}$."


def test_the_table_is_large_and_balanced():
    assert len(set(EQUAL)) == len(EQUAL) and len(set(DIFFERENT)) == len(DIFFERENT)
    assert len(EQUAL) >= 100 and len(DIFFERENT) >= 100 and 0.8 < len(EQUAL) / len(DIFFERENT) < 1.25


@pytest.mark.parametrize("gold, response", EQUAL)
def test_equal_values_are_the_same_answer_in_any_form(gold, response):
    """Comparing text, 0.5 is not \\frac12 and 1,234 is not 1234."""
    assert verify("math", boxed(response), gold).correct


@pytest.mark.parametrize("gold, response", DIFFERENT)
def test_different_values_are_different_answers(gold, response):
    """Dropping what is not understood, or rounding, makes near misses right."""
    verdict = verify("math", boxed(response), gold)
    assert not verdict.correct and verdict.feedback


RESPONSES = [  # (response, gold, correct): which answer is read
    (r"First \boxed{3}, no: \boxed{5}", "5", True),
    (r"First \boxed{3}, no: \boxed{5}", "3", False),
    (r"\boxed{5} and then \boxed{7", "5", True),
    (r"\boxed{7", "7", False),
    (r"the answer is \boxed{7", "7", False),
    (r"\boxed 5", "5", True),
    (r"$\boxed 5$.", "5", True),
    (r"\boxed\frac{1}{2}", "1/2", True),
    (r"\fbox{5}", "5", True),
    (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{\sqrt2}{2}", True),
    (r"\boxed{\left\{1,2\right\}}", r"\{1,2\}", True),
    (r"\boxed{\boxed{5}}", "5", True),
    (r"\boxed{}", "5", False),
    (r"\boxed{ }", "5", False),
    (r"{ \boxed{5}", "5", True),
    (r"$$\boxed{\text{Evelyn}}$$", r"\text{Evelyn}", True),
    (r"\boxed{5} \boxed{}", "5", True),
    (r"<think>\boxed{3}</think>\boxed{5}", "5", True),
    (r"<think>\boxed{5}</think>so it is done", "5", False),
    (r"\boxed{5}</think> nothing", "5", False),
    (r"a</think>\boxed{5}", "5", True),
    (r"\boxed{5} <think> hm", "5", True),
    (r"<think>\boxed{5}", "5", False),
    (r"<think><think>\boxed{3}</think></think>\boxed{5}", "5", True),
    (r"\boxed{5}<think>\boxed{6}</think>", "5", True),
    (r"<think>\boxed{5}</think>", "5", False),
    ("The answer is 5.", "5", True),
    ("... so the final answer is: **42**", "42", True),
    ("**Answer:** 42", "42", True),
    ("3*24=72\n#### 72", "72", True),
    ("#### 1,234", "1234", True),
    ("The answer is $\\frac12$.", "0.5", True),
    ("Final Answer: The final answer is $5$. I hope it is correct.", "5", True),
    ("The answer is:\n$$\n5\n$$", "5", True),
    ("The answer is 5 dollars.", "5", True),
    ("The answers are 1 and -2.", "1,-2", True),
    ("answer = 5", "5", True),
    ("The answer is 5.\nLet me check that 2 + 2 = 4", "5", False),
    ("It is 5", "5", False),
    ("5", "5", False),
    ("x = 5", "5", False),
    ("The answer is not 5", "5", False),
    ("The answer is 5 or 6", "5", False),
    ("The answer is 5 because 2+3=5", "6", False),
    ("The answer is between 4 and 6", "5", False),
    ("#### Step 5", "5", False),
    ("", "5", False),
    ("the answer is", "5", False),
]


@pytest.mark.parametrize("response, gold, correct", RESPONSES)
def test_the_last_finished_answer_outside_the_thinking_counts(response, gold, correct):
    """The first box, one inside <think>, or one that is never closed was read as the answer."""
    assert verify("math", response, gold).correct is correct


@pytest.mark.parametrize("gold", [None, 5, "", "  ", "9" * 2_000, ["5"]])
def test_a_bad_gold_answer_is_refused(gold):
    """A gold of the wrong form would make every rollout of its problem wrong."""
    with pytest.raises(ValueError, match="math answer"):
        verify("math", r"\boxed{5}", gold)
    with pytest.raises(ValueError, match="math answer"):
        check_answer("math", gold)
    with pytest.raises(ValueError, match="unknown task"):
        verify("maths", r"\boxed{5}", "5")


@pytest.mark.parametrize("task, gold", [("math", "5"), ("science", "B")])
def test_a_batch_checks_a_gold_once_a_rollout_and_finds_a_module_once(task, gold, monkeypatch):
    """Each gold was checked three times a rollout, and the module looked up four times: batches of
    short answers took an eighth longer."""
    checks, finds, check = [], [], verifiers.check_answer
    find = verifiers.importlib.util.find_spec
    monkeypatch.setattr(verifiers, "check_answer", lambda *a: checks.append(a) or check(*a))
    monkeypatch.setattr(
        verifiers.importlib.util, "find_spec", lambda *a: finds.append(a) or find(*a)
    )
    verdicts = verifiers.verify_batch(task, [boxed(gold), boxed("7")] * 20, [gold] * 40)
    assert [verdict.correct for verdict in verdicts] == [True, False] * 20
    assert len(checks) <= 2 and len(finds) <= 1


@pytest.mark.parametrize("task", verifiers.TASKS)
def test_a_batch_with_one_bad_gold_is_refused(task):
    good = {"math": "5", "science": "B", "tool": [{"Action": "f", "Action_Input": "{}"}]}
    good["code"] = {"type": "stdin", "tests": [{"input": "", "output": ""}]}
    for bad in (None, 5, [], {}, "", {"type": []}, {"type": "stdin", "tests": [1]}):
        with pytest.raises(ValueError, match=f"{task} answer|test 1 is not"):
            verifiers.verify_batch(task, ["x", "y"], [good[task], bad])
    with pytest.raises(ValueError, match="unknown task"):
        verifiers.verify_batch("maths", ["x"], ["5"])


def test_each_gold_answer_of_the_data_verifies_against_itself(rows):
    """A gold that its own text does not match can never be reached."""
    unread = [
        (row["id"], row["answer"])
        for name in MATH_FILES
        for row in rows(f"math/{name}")
        if not verify("math", boxed(row["answer"]), row["answer"]).correct
    ]
    assert not unread


def test_all_but_named_gold_answers_of_the_data_are_read_as_values(rows):
    """A gold outside the grammar is text: right answers in another form would be wrong."""
    golds = {row["answer"] for name in MATH_FILES for row in rows(f"math/{name}")}
    text = {gold for gold in golds if not math_answers.is_value(gold)}
    assert text <= {r"\frac{1}{7}\triangle ABC", r"\overline{CD}"}


def test_worked_solutions_of_the_data_are_right(rows):
    """The answer that a solution gives is the gold: where not, the extraction is at fault."""
    solved = [row for name in MATH_FILES for row in rows(f"math/{name}") if row.get("solution")]
    judged = [
        (row["id"], verify("math", row["solution"], row["answer"]))
        for row in solved
        if "\\boxed" in row["solution"] or "####" in row["solution"]
    ]
    assert len(judged) > 0.999 * len(solved) and not [
        (name, verdict) for name, verdict in judged if not verdict.correct
    ]


# Different texts of MATH500 gold answers that are in fact equal, with the reason.
TRULY_EQUAL = {
    frozenset({"-2,1", "1,-2"}): "a list in another order",
    frozenset({"120", r"120^\circ"}): "the degree sign is a unit",
    frozenset({"90", r"90^\circ"}): "the degree sign is a unit",
    frozenset({r"180^\circ", r"\pi"}): "the same angle in degrees and in radians",
    frozenset({"204_5", "54"}): "2 * 25 + 4 = 54",
    frozenset({"5", "x=5"}): "the equation gives the value",
}


def test_no_two_gold_answers_are_the_same_but_for_the_named_ones(rows):
    """A comparison that is too lenient makes the answer of another problem right."""
    golds = [row["answer"] for row in rows("math/math500_test")]
    assert len(golds) == 250
    texts = sorted(set(golds))  # all 250 * 249 pairs: the others are pairs of the same text
    found = {
        frozenset({a, b}) for a in texts for b in texts if a != b and math_answers.same_answer(a, b)
    }
    assert found <= set(TRULY_EQUAL)


REMARKS_THAT_DIFFER = r"""1 (x>0) # 1 (x<0) # 1 (x>1) # 1 (x\ge 0) # 1 (x \ne 0) # 1 for x<0
10 (loss) # 10 (gain) # 10\text{ (gain)} # $10$ (a net gain)
4 (minimum value) # 4 (maximum)
x=5 for x>0 # x=5 for x<0 # 5 (x<0) # 5 for all real x<0 # x=5 \text{ for } x \ge 0
2 (0<x<1) # 2 (0<x<2) # 2 (0\le x<1)
n^2 for all even n # n^2 for all odd n
k\pi, k\in\mathbb{Z} # k\pi, k\in\mathbb{N} # k\pi for real k"""
REMARKS_THAT_AGREE = r"""1 (x>0) # 1 (if x>0) # 1 (assuming x > 0)
1 (x>0) # 1 \text{ (provided } x>0) # 1 (x is positive)
2 (double root) # 2 (multiplicity 2) # 2 (repeated)
120 (ways) # 120 (arrangements) # 120 (permutations)
n for all n \in \mathbb{N} # n for all n \ge 1
\frac1x for all x \ne 0 # \frac1x for all nonzero x # 1/x (x \ne 0, since it divides)
5 (attained at x=2) # 5 (at x=2) # 5 (when x=2)
1 (x>0) # 1 # 1 (0<x) # 1 (x > 0) # 1 ($x>0$) # 1 \quad (x \gt 0)
1 (x>0) # 1 for x>0 # 1 for all real x>0
1/x (x\ne 0) # \frac{1}{x} \quad (x \neq 0) # \frac1x # 1/x (0 \ne x)
2 (0<x<1) # 2 (1>x>0)
1 (x>0, y>0) # 1 (y>0, x>0) # 1 (x>0 and y>0)
10 (loss) # 10 # 10 (LOSS) # 10 \text{ (Loss)} # 10 ( \text{loss} ) # $10$ (a loss)
x=5 for x>0 # x=5 # 5 # x = 5 \text{ for } x>0 # 5 (0<x)
5 (cm) # 5 # 5 cm # 5 (centimeters)
5 (square cm) # 5 (cm^2) # 5\text{ cm}^2
5 (apples) # 5 (apple) # 5
3.14 (rounded to two decimals) # 3.14 # 3.14 (to the nearest hundredth) # 3.14 (rounded)
k\pi, k\in\mathbb{Z} # k\pi # k\pi \text{ for integer } k # k\pi where k is an integer
cx for any c # cx \text{ for some constant } c # cx where c is an arbitrary constant"""


def remarks(table):
    rows = [row.split(" # ") for row in table.splitlines()]
    return [(gold, response) for gold, *others in rows for response in others]


@pytest.mark.parametrize("gold, response", remarks(REMARKS_THAT_DIFFER))
def test_answers_whose_remarks_contradict_are_not_the_same(gold, response):
    """Remarks and conditions were dropped, also where both answers have one and they contradict."""
    assert not math_answers.same_answer(response, gold)
    assert not math_answers.same_answer(gold, response)
    assert verify("math", boxed(response), gold).feedback
    for text in (gold, response):  # each is equal to itself and to what it says without the remark
        bare = re.split(r",? *(?:\(|\\text\{|for |k\\in)", text)[0].strip("$ ")
        assert verify("math", boxed(text), text).correct
        assert verify("math", boxed(bare), text).correct
        assert verify("math", boxed(text), bare).correct


@pytest.mark.parametrize("gold, response", remarks(REMARKS_THAT_AGREE))
def test_remarks_that_say_the_same_or_stand_on_one_side_change_nothing(gold, response):
    assert verify("math", boxed(response), gold).correct
    assert verify("math", boxed(gold), response).correct
    assert not verify("math", boxed(response), "7").correct
    assert not verify("math", boxed(response), "7 (x>0)").correct


def test_remarks_inside_remarks_end():
    """A remark is read as an answer of its own, so it may not hold one without end."""
    for piece in ("for x ", "(ab) ", "(x>0) ", "where x, k∈\\mathbb{Z} ", "∀x (ab) ", "⑴ for y "):
        for other in ("5 (ab)", "5 " + piece * 50):
            assert math_answers.same_answer("5 " + piece * 60, other) in (True, False)


def hostile_texts():
    inside = {
        "tower": "9^{9^{9^9}}",
        "plain tower": "44**19**35",
        "braces": "{" * 100_000 + "5" + "}" * 100_000,
        "megabyte of digits": "9" * 10**6,
        "brackets": "(" * 490 + "5" + ")" * 490,
        "bars": "|" * 900,
        "signs": "-" * 901 + "5",
        "roots": r"\sqrt" * 190 + "2",
        "fractions": r"\frac" * 190,
        "powers": "^".join("2" * 450),
        "subscripts": "x" + "_x" * 450,
        "functions": "sin " * 240 + "x",
        "factorials": "5" + "!" * 900,
        "large factorials": "+".join(["2199!"] * 160),
        "large powers": "+".join(["x^{999}"] * 120),
        "large binomial": r"\binom{20000}{10000}",
        "fractions without common denominator": "+".join(f"1/{n}^9" for n in range(1000, 1090)),
        "exponentials": r"\exp(\exp(\exp(1000)))",
        "poles": r"\cot x" * 150,
        "commas": "," * 990,
        "plus or minus": r"\pm1," * 190,
        "numerals": "9_9" * 300,
        "mixed": "1 1/2" * 190,
        "root of root": r"\sqrt[10^9]{2}",
        "equations": "x=y=" * 200 + "1",
        "matrix": r"\begin{pmatrix}" + r"1&2\\" * 120 + r"\end{pmatrix}",
        "digits below the limit of int": "9" * 990,
        "nested powers": "(" * 20 + "x" + "^{99})" * 20,
        "list": ",".join(["x+1"] * 240),
    }
    texts = {name: "\\boxed{" + text + "}" for name, text in inside.items()}
    texts.update(
        {
            "open boxes": "\\boxed{" * 200_000,
            "bare boxes": "\\boxed " * 200_000,
            "boxes with a letter": "\\boxed{a" * 200_000,
            "think": "<think>" * 200_000,
            "end of think": "</think>" * 200_000,
            "both": "<think></think>" * 100_000,
            "backslashes": "\\" * 10**6,
            "answers": "answer is " * 100_000,
            "stars": "answer" + "*" * 10**6,
            "hashes": "#" * 10**6,
            "surrogates": "\ud800" * 10**5,
            "null": "\0" * 10**6,
        }
    )
    return texts


@pytest.mark.parametrize("name", hostile_texts())
def test_a_hostile_answer_costs_less_than_a_second(name):
    """Towers of powers, deep brackets and long scans hung or crashed verifiers."""
    text = hostile_texts()[name]
    for gold in ("7", r"1 \pm \sqrt{7x}", ",".join(["x+7"] * 10)):
        start = time.process_time()
        verdict = verify("math", text, gold)
        assert (
            time.process_time() - start < 1.0
        )  # usually far less; the margin is for slow machines
        assert not verdict.correct and 0 < len(verdict.feedback) <= 2_000


def test_towers_braces_and_long_numbers_take_milliseconds():
    for name in ("tower", "plain tower", "braces", "megabyte of digits"):
        text = hostile_texts()[name]
        start = time.process_time()
        assert not verify("math", text, "5").correct
        assert time.process_time() - start < 0.25


PIECES = [
    r"\frac",
    r"\sqrt",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "^",
    "_",
    "!",
    "+",
    "-",
    "*",
    "/",
    "=",
    "<",
    ",",
    ":",
    "|",
    "&",
    r"\\",
    r"\{",
    r"\}",
    r"\pm",
    r"\cup",
    r"\begin{pmatrix}",
    r"\end{pmatrix}",
    r"\text{",
    "5",
    "12",
    "0.5",
    "x",
    "i",
    r"\pi",
    r"\infty",
    r"\sin",
    r"\log",
    r"\binom",
    "°",
    "%",
    "$",
    r"\$",
    " ",
    "and",
    "five",
    "cm",
    r"\boxed{",
    "<think>",
    "</think>",
    "#### ",
    "The answer is ",
    "\n",
    "\0",
    "é",
    "\ud800",
    "٣",
    "²",
    "❤",
]


def test_random_text_never_raises():
    """A verifier that raises gives the whole step no reward."""
    rng = random.Random(0)
    for _ in range(4_000):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 40)))
        for response in (text, "\\boxed{" + text + "}"):
            verdict = verify("math", response, "x^2+7")
            assert (
                isinstance(verdict.correct, bool) and bool(verdict.feedback) is not verdict.correct
            )
            assert len(verdict.feedback) <= 2_000


def test_mutated_answers_never_raise():
    rng = random.Random(1)
    golds = [gold for gold, _ in EQUAL + DIFFERENT]
    for _ in range(3_000):
        gold, letters = rng.choice(golds), list(rng.choice(golds))
        for _ in range(rng.randint(1, 4)):
            letters.insert(rng.randint(0, len(letters)), rng.choice(PIECES))
        assert verify("math", boxed("".join(letters)), gold).feedback is not None


@pytest.mark.parametrize(
    "response, gold",
    [
        (r"0<x<10^{400}", r"(0,10^{401})"),
        (r"0<x<10^{400}", r"(0,\infty)"),
        (r"7 \bmod 40.5", r"7 \bmod 4"),
        (r"(1,2)\cup(-\log 3,4)", r"(1,2)\cup(3,4)"),
        (r"82 \ge g(x) \ge -\log 80", r"82 \ge g(x) \ge -80"),
    ],
)
def test_large_bounds_logarithms_and_remainders_are_compared_without_an_error(response, gold):
    """Ends of sets beyond floats, or complex with no imaginary part, and two remainders raised."""
    assert not verify("math", boxed(response), gold).correct
    assert verify("math", boxed(gold), gold).correct


def test_equal_remainders_are_the_same_answer():
    """Two remainders were compared as if they were congruences."""
    assert verify("math", boxed(r"22 \bmod 5"), r"17 \bmod 5").correct
    assert not verify("math", boxed(r"23 \bmod 5"), r"17 \bmod 5").correct


def test_an_answer_is_equal_to_itself():
    for gold, response in EQUAL:
        assert (
            verify("math", boxed(gold), gold).correct
            and verify("math", boxed(f" {response} "), gold).correct
        )


def test_feedback_is_the_same_for_every_gold_answer(rows):
    """Feedback is shown to the teacher: it must not tell the gold answer."""
    golds = [row["answer"] for row in rows("math/math500_test")]
    rng, swapped = random.Random(2), 0
    for response in [boxed(gold) for gold in golds] + [
        "",
        r"\boxed{7",
        r"\boxed{{}",
        "It is 7",
        r"\boxed{" + "9" * 2_000 + "}",
        "<think> 7",
    ]:
        texts = {
            verdict.feedback
            for verdict in (verify("math", response, gold) for gold in rng.sample(golds, 20))
            if not verdict.correct
        }
        assert len(texts) == 1
        swapped += 1
    assert swapped == 256
