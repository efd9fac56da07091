"""How a model family writes conversations: chat template, stop tokens, marks of thinking, dates.

No family is looked up by name: what a template does is found by rendering probes through it. Only
the marks of thinking are a list, because no template tells what a model writes of its own accord.

    begin(variables='{"reasoning_effort": "low"}', date=None)  # once, at the start of a run
    prompt = chat_ids(tokenizer, system, messages)
    text = completion_text(tokenizer, ids, prompt)             # its thoughts in <think>...</think>
"""

import datetime
import functools
import itertools
import json
import re
from dataclasses import dataclass, field

from jinja2 import TemplateError

import peer_context
from runtime import first_line, parallel

# What families write instead of <think> and </think>. All of them are too odd to be met in an
# answer by chance, so they count everywhere.
THOUGHTS = (
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral, Ministral
    (r"<seed:think>", r"</seed:think>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A and R7B
    (r"◁think▷", r"◁/think▷"),  # Kimi-VL
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    (r"<\|channel>thought\n?", r"<channel\|>"),  # Gemma 4
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # Sky-T1, OpenThinker
    (r"<\|thought_start\|>", r"<\|thought_end\|>"),
    # gpt-oss: every channel but the final one
    (
        r"(?:<\|start\|>assistant)?<\|channel\|>(?!final)(?:[^<]|<\|constrain\|>)*<\|message\|>",
        r"(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final(?:[^<]|<\|constrain\|>)*"
        r"<\|message\|>",
    ),
    (r"<\|open\|>think<\|sep\|>", r"<\|close\|>think<\|sep\|>"),  # Kimi K3
    (r"<\|think\|>", r"(?:<\|end\|>)?(?:<\|begin\|>assistant)?<\|content\|>"),  # Solar Open
)
# The same in words that an answer may hold as well: they count where the chat template has them.
WORDS = (
    (r"<thought>", r"</thought>"),  # EXAONE Deep
    (r"<Thought>", r"</Thought>"),
    (r"<thinking>", r"</thinking>"),
    (r"<reasoning>", r"</reasoning>"),  # Reka
    (r"Here are my reasoning steps:", r"\[BEGIN FINAL RESPONSE\]"),  # Apriel
    (r"Here is my thought process:", r"Here is my response:"),  # Granite 3
)
# What may stand around the final answer: tokens, and tags where the chat template has them.
WRAPPERS = re.compile(
    r"<\|(?:START|END)_(?:RESPONSE|TEXT)\|>|<\|(?:begin|end)_of_solution\|>"
    r"|\[(?:BEGIN|END) FINAL RESPONSE\]"
    r"|<\|(?:open|close)\|>(?:response|message)<\|sep\|>"
)
TAGS = ("answer", "response", "output", "Output")  # Hunyuan, Ernie and Granite, Reflection, Marco
INNER = {*TAGS, "think", "thought", "Thought", "thinking", "reasoning"}
# Turn marks that are text to the tokenizer: [INST], <<SYS>>, <|user|>, <start_of_turn>
BRACKETED = re.compile(r"<<?[/|｜]{0,2}\w[\w▁: -]{0,40}[|｜]?>>?|\[/?[A-Z][A-Z_]*\]")
# What templates without enable_thinking may take to think less.
SWITCHES = (
    {"thinking": False},
    {"reasoning": False},
    {"thinking_budget": 0},
    {"reasoning_effort": "none"},
    {"reasoning_effort": "low"},
)
# What a template's own code raises where it takes no such conversation.
REFUSALS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
CLOCK = r"\bstrftime_now"  # the function that transformers offers to templates
PROBE = "Seven  is <odd>, isn't it?\n\n\n\tYes & no: {7} /think."


@dataclass
class Writing:
    """What a run passes to every chat template, beside the messages."""

    date: datetime.date = field(default_factory=datetime.date.today)
    variables: dict = field(default_factory=dict)


writing = Writing()


def begin(variables: str | None = None, date: str | None = None) -> None:
    """Fix what templates are given in this run: a JSON object of variables, and the date.

    date: "2026-11-28", by default today's. A template that writes today's date would else write
    another one after midnight or after a resume. Raises ValueError for anything else.
    """
    try:
        known = json.loads(variables or "{}")
    except ValueError:
        known = None
    if not isinstance(known, dict):
        raise ValueError(f"--template-variables {variables}: not one JSON object")
    writing.variables = known
    # rank 0's for all: it may be midnight
    date = parallel.gather([date or datetime.date.today().isoformat()])[0]
    writing.date = datetime.date.fromisoformat(date)
    for function in (_dated, _wants_parts, _writes_role, _say_once):
        function.cache_clear()  # they have rendered with what was fixed before
    for function in (_breaker, _closes_turn, _opens_thought, _chat_ids):
        function.cache_clear()


# --- text to tokens ---


def chat_ids(tokenizer, system: str, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of `chat_text`, without special tokens: the template writes its own, and a second
    BOS would be one too many."""
    turns = tuple((m["role"], m["content"]) for m in messages)
    return list(_chat_ids(tokenizer, _template(tokenizer), system, turns))


@functools.lru_cache(maxsize=64)  # most contexts of a group are equal, and follow one another
def _chat_ids(tokenizer, template: str, system: str, turns: tuple[tuple[str, str], ...]):
    messages = [{"role": role, "content": content} for role, content in turns]
    text = chat_text(tokenizer, system, messages)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def chat_text(tokenizer, system: str, messages: list[dict[str, str]]) -> str:
    """A conversation as the template writes it, with the generation prompt, thinking off if it can.

    system: "" means none; the template may still write one of its own. messages: [{"role": "user"
    or "assistant", "content": text}, ...], user first. Turn marks that a text spells out are broken
    up, see `plain_text`. Where a template has no system role the system message opens the first
    user turn. Raises ValueError where the template refuses.
    """
    _say_once(tokenizer)
    system = plain_text(tokenizer, system)
    messages = [m | {"content": plain_text(tokenizer, m["content"])} for m in messages]
    try:
        return _render(tokenizer, _with_system(tokenizer, system, messages))
    except Exception as error:  # templates refuse with exception types of their own
        raise ValueError(
            f"the chat template refuses a conversation of a system message and {len(messages)} "
            f"turns ({first_line(error):.200}): a variable that it lacks is given by "
            "--template-variables"
        ) from None


def student_ids(tokenizer, problem) -> list[int]:
    """What the student reads: the problem's system message and one user turn."""
    return chat_ids(tokenizer, problem.system, [{"role": "user", "content": problem.prompt}])


def layouts_of(tokenizer) -> tuple[str, ...]:
    """The layouts that the chat template can write: some drop earlier turns of the assistant."""
    return peer_context.LAYOUTS if _writes_role(tokenizer, "assistant") else ("turn",)


def _with_system(tokenizer, system, messages):
    if not system:
        return messages
    if _writes_role(tokenizer, "system"):
        return [{"role": "system", "content": system}, *messages]
    first, *rest = messages
    return [{"role": "user", "content": f"{system}\n\n{first['content']}"}, *rest]


def _render(tokenizer, messages, prompt=True, **variables) -> str:
    """The conversation as text; prompt: with the header of the assistant's next turn."""
    if _wants_parts(tokenizer):
        messages = [_in_parts(message) for message in messages]
    return _apply(tokenizer, messages, prompt, variables)


def _apply(tokenizer, messages, prompt, variables) -> str:
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template: use an instruction-tuned model, or give it one"
        )
    return tokenizer.apply_chat_template(
        messages,
        chat_template=_dated(tokenizer.get_chat_template()),
        tokenize=False,
        add_generation_prompt=prompt,
        **({"enable_thinking": False} | writing.variables | variables),
    )


def _in_parts(message):
    return message | {"content": [{"type": "text", "text": message["content"]}]}


@functools.lru_cache(maxsize=16)
def _wants_parts(tokenizer) -> bool:
    """Whether the template of a multimodal model loses a content that is not a list of parts."""

    def shows(message):
        try:
            return "<probe?>" in _apply(tokenizer, [message], True, {})
        except REFUSALS:
            return False

    return bool(tokenizer.chat_template) and (
        not shows(_user("<probe?>")) and shows(_in_parts(_user("<probe?>")))
    )


@functools.lru_cache(maxsize=16)
def _dated(template: str) -> str:
    """The template with its calls of `strftime_now` replaced by the run's date.

    By its text: transformers has its own function of this name, and one that is passed as a
    variable arrives as the text of its repr.
    """

    def written(call):
        return repr(writing.date.strftime(call[2]))

    return re.sub(rf"""{CLOCK}\s*\(\s*(?:format\s*=\s*)?(['"])(.*?)\1\s*\)""", written, template)


def _try(tokenizer, messages, **options) -> str:
    """`_render`, "" where the template refuses the messages."""
    try:
        return _render(tokenizer, messages, **options)
    except REFUSALS:
        if not tokenizer.chat_template:
            raise
        return ""


def _user(text):
    return {"role": "user", "content": text}


def _assistant(text):
    return {"role": "assistant", "content": text}


@functools.lru_cache(maxsize=16)
def _writes_role(tokenizer, role: str) -> bool:
    """Whether the chat template writes a "system" message, or earlier "assistant" turns."""
    asked, probe = _user("."), {"role": role, "content": "<probe?>"}
    text = _try(tokenizer, [probe, asked] if role == "system" else [asked, probe, asked])
    return "<probe?>" in text


@functools.lru_cache(maxsize=16)
def _say_once(tokenizer) -> None:
    """Print what a user has to know about a chat template; once per run."""
    if not _writes_role(tokenizer, "system"):
        print("the chat template has no system role: system messages open the first user turn")
    asked = [_user("2 + 2?")]
    off, on = _try(tokenizer, asked), _try(tokenizer, asked, enable_thinking=True)
    if off and off == on and re.search(r"think|thought|reasoning", tokenizer.get_chat_template()):
        less = [json.dumps(s) for s in SWITCHES if _try(tokenizer, asked, **s) not in (off, "")]
        print(
            "the chat template speaks of thoughts, and enable_thinking changes nothing in it"
            + (f": try --template-variables '{less[0]}'" if less else "")
        )
    if re.search(rf"{CLOCK}\s*\(", _dated(tokenizer.get_chat_template())):
        print("the chat template makes up a date that cannot be fixed: prompts change by the day")
    turns = [_user(PROBE), _assistant(PROBE), _user(PROBE)]
    turns = turns if _writes_role(tokenizer, "assistant") else turns[:1]
    shown = plain_text(tokenizer, PROBE)
    turns = [turn | {"content": shown} for turn in turns]
    text = _try(tokenizer, turns)
    if text and text.count(shown) < len(turns):
        print("the chat template alters the text of messages: peers are not read as written")


# --- marks that a text must not spell out, and the one that ends a turn ---


def plain_text(tokenizer, text: str) -> str:
    """The text with the marks of turns in it broken up: read as such, they would end its turn.

    Marks: the special tokens, and what the template writes around empty messages, be it a token or
    a word in brackets. Words without brackets ("USER:", "### Response:") are left as they are.
    """
    return _breaker(tokenizer).sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", text)


@functools.lru_cache(maxsize=16)
def _breaker(tokenizer) -> re.Pattern:
    added = list(tokenizer.added_tokens_decoder.values())
    frame = _frame(tokenizer)
    # As text, <think> and <answer> end no turn, and our own instructions ask for <answer>.
    marks = {mark for mark in BRACKETED.findall(frame) if _name(mark) not in INNER}
    tokens = {t.content for t in added if _is_mark(t.content) and t.content in frame}
    marks |= {token for token in tokens if _name(token) not in TAGS}
    marks |= {t.content for t in added if t.special}
    return _any_of(mark for mark in marks if len(mark) > 1)


def _name(mark: str) -> str:
    return re.sub(r"\W", "", mark)


def _frame(tokenizer) -> str:
    """A conversation of dots: what the template writes around messages."""
    if not tokenizer.chat_template:
        return ""
    turns = [_user("."), _assistant("."), _user(".")]
    texts = [_try(tokenizer, _with_system(tokenizer, ".", turns[:n])) for n in (1, 3)]
    return "\n".join([*texts, _try(tokenizer, turns[:2], prompt=False)])


def _is_mark(token: str) -> bool:
    """Not a word or white space, which some tokenizers have among their added tokens."""
    return not (token[:1].isalnum() or token.isspace())


def stop_ids(model, tokenizer) -> list[int]:
    """Every token that ends a turn: the tokenizer's, the model's, and the chat template's.

    The model has it in two configurations, which may name several. A base model's end-of-text
    token is not the one with which its template closes a turn: without the latter a rollout would
    run on into a made-up conversation.
    """
    found = {tokenizer.eos_token_id, _closes_turn(tokenizer)}
    for config in (model.config, model.generation_config):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, (list, tuple)) else [ids])
    return sorted(found - {None})


@functools.lru_cache(maxsize=16)
def _closes_turn(tokenizer) -> int | None:
    """The first token after an assistant's answer, None where it is ordinary text.

    At the end of the conversation, else (templates that leave the last turn open) before the next
    turn. Not gpt-oss's <|end|>, which closes earlier turns, but the thoughts of the last one, too.
    """
    if not tokenizer.chat_template:
        return None
    tokens = {t.content: n for n, t in tokenizer.added_tokens_decoder.items()}
    if re.search(r"<\|channel\|>|<\|begin\|>", tokenizer.get_chat_template()):
        tokens.pop("<|end|>", None)
    names = sorted((name for name in tokens if _is_mark(name)), key=len, reverse=True)
    turns = [_user("."), _assistant("qvq"), _user(".")]
    for shown in (turns[:2], turns):
        after = _try(tokenizer, shown, prompt=False).partition("qvq")[2]
        after = WRAPPERS.sub("", after).lstrip()
        for name in names:
            if after.startswith(name):
                return tokens[name]
    return None


# --- tokens to text ---


def completion_text(tokenizer, ids: list[int], prompt: list[int] | None = None) -> str:
    """What a completion says, without special tokens and wrappers, thoughts in <think>...</think>.

    The one place that decides what is thought, whatever marks the family has; `strip_thinking` of
    peer_context.py then takes it out, for the verifier and for peers. prompt: the ids before it,
    whose end may have opened a thought already (default: by the chat template).
    """
    text = tokenizer.decode(ids, skip_special_tokens=False)
    marked = WRAPPERS.sub("", _with_think(tokenizer, text))
    if marked == text and "think>" not in text:
        text = tokenizer.decode(ids, skip_special_tokens=True)
    else:
        text = _special(tokenizer).sub("", marked)
    if prompt is None:
        opened = _opens_thought(tokenizer)
    else:
        opened = _is_open(tokenizer, _template(tokenizer), tuple(prompt[-32:]))
    if opened:
        text = "<think>" + text
    thoughts, closed, answer = text.rpartition("</think>")
    return thoughts + closed + _unwrapped(tokenizer, answer)


@functools.lru_cache(maxsize=16)
def _special(tokenizer) -> re.Pattern:
    """Any special token but the marks of thinking, which are special in some families."""
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    return _any_of(special - {"<think>", "</think>"})


def _any_of(words) -> re.Pattern:
    """Any of these words, the longest first.

    Numbers inside a word stand for all numbers: Gemma's 6,000 tokens from <unused0> on would else
    be as many alternatives at every "<".
    """
    shapes = {re.sub(r"(?<=\D)\d+(?=\D)", r"\\d+", re.escape(word)) for word in words}
    return re.compile("|".join(sorted(shapes, key=len, reverse=True)) or r"(?!)")


def _template(tokenizer) -> str:
    return tokenizer.get_chat_template() if tokenizer.chat_template else ""


def _with_think(tokenizer, text: str) -> str:
    """The text with every family's marks of thinking as <think> and </think>."""
    any_mark, marks = _marks(_template(tokenizer))
    if any_mark.search(text):
        for opening, closing in marks:
            text = re.sub(opening, "<think>", re.sub(closing, "</think>", text))
    return text


@functools.lru_cache(maxsize=16)
def _marks(template: str) -> tuple[re.Pattern, list[tuple[str, str]]]:
    """(any mark of thinking but <think>, the pairs of marks) that count with this template."""
    words = [pair for pair in WORDS if re.search("|".join(pair), template)]
    marks = [*THOUGHTS, *words]
    return re.compile("|".join(itertools.chain(*marks))), marks


def _unwrapped(tokenizer, answer: str) -> str:
    """An answer without the tags around it; one word in tags, as of a choice, stays as it is."""
    for tag in (tag for tag in TAGS if f"<{tag}>" in _template(tokenizer)):
        bare = answer.strip()
        inside = bare.removeprefix(f"<{tag}>").removesuffix(f"</{tag}>").strip()
        if bare.startswith(f"<{tag}>") and len(inside.split()) > 1:
            answer = inside
    return answer


@functools.lru_cache(maxsize=16)
def _opens_thought(tokenizer) -> bool:
    """Whether the header of the assistant's turn ends in an open mark of thinking."""
    if not tokenizer.chat_template:
        return False
    return _ends_open(tokenizer, _try(tokenizer, [_user(".")]))


@functools.lru_cache(maxsize=64)  # the rollouts of a group have one prompt
def _is_open(tokenizer, template: str, end_of_prompt: tuple[int, ...]) -> bool:
    return _ends_open(tokenizer, tokenizer.decode(end_of_prompt, skip_special_tokens=False))


def _ends_open(tokenizer, text: str) -> bool:
    return _with_think(tokenizer, text).rstrip().endswith("<think>")
