"""Golds of tool and code rows: from the forms of published sets to those of docs/data.md.

Nothing of a row is executed or imported: calls are parsed, packed tests are unpacked as plain data.
ValueError says what cannot be read.
"""

import ast
import base64
import binascii
import builtins
import contextlib
import json
import pickletools
import re
import zlib

import verifiers

MAX_UNPACKED = 256 << 20  # bytes of a row's packed tests


def from_json(text):
    """The value that a text of JSON holds; any other value as it is."""
    if isinstance(text, str) and text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


# --- tool ---


def described(tools) -> list[tuple[str, str]]:
    """(name, what the student reads of it) of each tool in a list of descriptions."""
    tools = from_json(tools)
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list):
        raise ValueError("the tools are no list of objects")
    return [_described(from_json(tool)) for tool in tools]


def _described(tool):
    tool = tool.get("function", tool) if isinstance(tool, dict) else {}
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise ValueError("a tool has no name")
    parameters = json.dumps(tool.get("parameters", tool.get("arguments", {})), ensure_ascii=False)
    text = f"{tool['name']}: {tool.get('description') or ''}".rstrip()
    return tool["name"].strip(), f"{text}\nParameters: {parameters}"


def tools_in(text: str) -> list[dict] | None:
    """The first JSON list of objects with names in a text, as in ToolACE's system messages."""
    for start in [m.start() for m in re.finditer(r"\[\s*\{", text)][:20]:
        try:
            found, _ = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if all(isinstance(tool, dict) and "name" in tool for tool in found):
            return found
    return None


def tool_actions(value) -> list[dict[str, str]]:
    """Calls of any published form as actions; ValueError for what is no list of calls."""
    if isinstance(value, str):
        calls = python_calls(value)
    else:
        calls = [_call(item) for item in ([value] if isinstance(value, dict) else value or [])]
    if not calls:
        raise ValueError("the answer is no call of a tool")
    return [
        {"Action": name, "Action_Input": json.dumps(arguments, ensure_ascii=False)}
        for name, arguments in calls
    ]


def _call(item):
    """(name, arguments): of this project, OpenAI, xlam, or BFCL with its accepted values."""
    if not isinstance(item, dict):
        raise ValueError(f"the answer is no list of calls: {item!r:.60}")
    if "Action" in item:
        name, arguments = item["Action"], item.get("Action_Input")
    else:
        call = item.get("function", item)
        call = call if isinstance(call, dict) else item
        name = call.get("name")
        arguments = call.get("arguments", call.get("parameters"))
        if name is None and len(item) == 1:
            ((name, accepted),) = item.items()
            arguments = _accepted(accepted)
    arguments = from_json(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError(f"a call has no name or no object of arguments: {item!r:.60}")
    return name.strip(), arguments


def _accepted(arguments):
    """BFCL lists the accepted values of an argument; "" means that it may be left out."""
    if not isinstance(arguments, dict):
        raise ValueError("an answer has no object of arguments")
    chosen = {}
    for name, values in arguments.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"argument {name!r} has no list of accepted values")
        if any(value != values[0] for value in values):
            raise ValueError(
                f"argument {name!r} has several accepted values; a call is compared with one"
            )
        chosen[name] = _single(values[0])
    return chosen


def _single(value):
    """Inside an object BFCL lists the accepted values of every key, too."""
    if isinstance(value, dict):
        return _accepted(value)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [_accepted(item) for item in value]
    return value


def python_calls(text: str) -> list[tuple[str, dict]]:
    """The calls in "[Get Weather(city='Rome', days=2), ...]": names with spaces, literal values."""
    text, calls = text.strip(), []
    if len(text) > 20_000 or text[:1] != "[" or text[-1:] != "]":
        raise ValueError("the answer is no call of a tool")
    rest = text[1:-1].strip()
    while rest:
        head, opened, _ = rest.partition("(")
        end = _closing(rest, len(head))
        if not opened or not head.strip() or end is None:
            raise ValueError(f"the answer is no list of calls like name(x=1): {text!r:.60}")
        calls.append((head.strip(), _keywords(rest[len(head) : end + 1])))
        rest = rest[end + 1 :].strip().removeprefix(",").strip()
    return calls


def _closing(text, start):
    """Where the bracket that opens at `start` closes, quotes aside; None where it does not."""
    depth = 0
    for m in re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[()]""", re.S).finditer(
        text, start
    ):
        depth += {"(": 1, ")": -1}.get(m[0], 0)
        if depth == 0:
            return m.start()
    return None


def _keywords(arguments):
    """{name: value} of "(city='Rome', days=2)"; values are literals, also true, false and null."""
    try:
        call = ast.parse("f" + arguments, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not all(k.arg for k in call.keywords):
            raise ValueError("arguments without names")
        words = {"true": True, "false": False, "null": None}
        return {
            k.arg: words[k.value.id]
            if isinstance(k.value, ast.Name) and k.value.id in words
            else json.loads(json.dumps(ast.literal_eval(k.value)))
            for k in call.keywords
        }
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"the arguments of a call cannot be read: {arguments!r:.60}") from None


def toolalpaca(row: dict) -> tuple[str, list[tuple[str, list]]]:
    """(field of the golds, [(prompt, actions), ...]) of a row of ToolAlpaca, which is an API.

    Of the training file's dialogues only those of one call: a later call may need the reply to an
    earlier one.
    """
    name, pairs = "Golden_Answers", []
    if isinstance(row.get(name), list):
        pairs = list(zip(row["Instructions"], row[name], strict=False))
    else:
        name = "Instances"
        for instance in row.get(name) or []:
            steps = [step[0][:2] for step in instance.get("intermediate_steps") or []]
            calls = [{"Action": a, "Action_Input": b} for a, b in steps if a != "getDetails"]
            if len(calls) == 1:
                pairs.append((instance["input"].rsplit("\nHint: ", 1)[0], calls))
    if not pairs:
        raise ValueError("the API has no instruction that one call answers")
    head = f"Tools of {row.get('Name')}:\n{row['NLDocumentation'].strip()}\n\n"
    return name, [(head + text, tool_actions(value)) for text, value in pairs]


# --- code ---


def code_answer(row: dict, name: str, value) -> dict:
    """A row's tests as a code answer. name, value: the field that holds them, see ANSWERS.

    A value that the verifier takes is left as it is: a checkpoint knows its rows by their content.
    """
    with contextlib.suppress(ValueError):
        verifiers.check_answer("code", value)
        return value
    value = from_json(value)
    if name == "public_test_cases":
        return _livecodebench(row, value)
    if name == "public_tests":
        return _code_contests(row, value)
    if isinstance(value, str) and "def " in value:
        return _test_source(row, value)
    if isinstance(value, dict) and "tests" in value:
        there = {key: item for key, item in value.items() if item is not None}
        return there | {"tests": from_json(value["tests"])}
    if isinstance(value, dict) and "inputs" in value:
        return _inputs_and_outputs(value, row)
    if isinstance(value, list) and value and all(isinstance(test, dict) for test in value):
        return _cases(value, row, None)
    if isinstance(value, list) and value and all(isinstance(test, str) for test in value):
        return _assertions(row, value)
    raise ValueError(f"field {name!r} holds no tests in a form that is read here")


def code_prompt(prompt: str, answer: dict) -> str:
    """The statement with what the tests will call, which it rarely says.

    A prompt that came out of this function stays as it is: rows are written and read again.
    """
    entry, addition = answer.get("entry_point"), ""
    if start := answer.get("starter_code"):
        addition = f"\n\nStart from this code:\n```python\n{start}\n```"
    elif entry and not re.search(rf"\b{re.escape(entry)}\s*\(", prompt):
        addition = f"\n\nThe function must be called {entry}."
    return prompt if prompt.endswith(addition) else prompt + addition


def _livecodebench(row, public):
    """Public tests as JSON; private ones as JSON or packed."""
    private = row.get("private_test_cases")
    private = from_json(private) if private else []
    if isinstance(private, str):
        private = from_json(unpack_text(private))
    if not isinstance(public, list) or not isinstance(private, list):
        raise ValueError("the test cases are no list")
    about = from_json(row.get("metadata"))
    entry = about.get("func_name") if isinstance(about, dict) else None
    return _cases(public + private, row, entry)


def unpack_text(packed: str, limit: int = MAX_UNPACKED) -> str:
    """The text in base64 of zlib of a pickled text. The pickle is read, never run: it may hold one
    text and nothing else."""
    try:
        engine = zlib.decompressobj()
        data = engine.decompress(base64.b64decode(packed, validate=True), limit)
        if not engine.eof:
            more = f"more than {limit >> 20} MB" if engine.unconsumed_tail else "cut short"
            raise ValueError(more)
        texts = []
        for operation, value, _ in pickletools.genops(data):
            if operation.name in ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"):
                texts.append(value)
            elif operation.name not in ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "STOP"):
                raise ValueError(f"not plain text but {operation.name}")
        (text,) = texts
    except (ValueError, zlib.error, binascii.Error, UnicodeError) as error:
        reason = f"the packed tests cannot be read: {str(error) or 'not one text'}"
        raise ValueError(reason.splitlines()[0][:200]) from None
    return text


def _cases(cases, row, entry):
    """Tests like {"input", "output", "testtype"}: all of one kind."""
    if not all(isinstance(case, dict) for case in cases):
        raise ValueError("a test is not an object")
    about = from_json(cases[0].get("metadata")) if cases else None
    about = about if isinstance(about, dict) else {}
    entry = entry or row.get("entry_point") or about.get("func_name")
    kinds = {case.get("testtype") or case.get("type") or "" for case in cases}
    kinds = {"functional" if kind in ("functional", "call_based") else "stdin" for kind in kinds}
    if len(kinds) != 1:
        raise ValueError("tests with standard input and tests of a function in one row")
    tests = [{"input": case.get("input"), "output": case.get("output")} for case in cases]
    return _answer(kinds.pop(), tests, entry, row)


def _answer(kind, tests, entry, row):
    answer = {"type": kind, "tests": tests}
    if kind == "functional":
        answer["entry_point"] = entry
        start = row.get("starter_code") or ""
        if "class Solution" in start or f"def {entry}" in start:
            answer["starter_code"] = start
    return answer


def _inputs_and_outputs(value, row):
    """APPS, TACO: {"inputs", "outputs", "fn_name"}; of a function, lists of arguments."""
    given, wanted, entry = value.get("inputs"), value.get("outputs"), value.get("fn_name")
    if not isinstance(given, list) or not isinstance(wanted, list) or len(given) != len(wanted):
        raise ValueError("'inputs' and 'outputs' are not two lists of one length")
    if not given:
        raise ValueError("the row has no tests")
    if entry:
        if all(isinstance(arguments, list) for arguments in given):
            given = ["\n".join(map(json.dumps, arguments)) for arguments in given]
            if all(isinstance(result, list) and len(result) == 1 for result in wanted):
                wanted = [result[0] for result in wanted]  # each result in a list of its own
            wanted = list(map(json.dumps, wanted))
    else:
        given, wanted = (list(map(_lines, texts)) for texts in (given, wanted))
    tests = [{"input": a, "output": b} for a, b in zip(given, wanted, strict=True)]
    return _answer("functional" if entry else "stdin", tests, entry, row)


def _lines(text):
    """A text, or a list of its lines."""
    if isinstance(text, list):
        return "\n".join(map(str, text)) + "\n"
    return text


def _code_contests(row, public):
    """Public and private tests; generated ones only where there are no private ones."""
    groups = [public, from_json(row.get("private_tests")) or {}]
    if not groups[1].get("input"):
        groups.append(from_json(row.get("generated_tests")) or {})
    given = {"inputs": [], "outputs": []}
    for group in groups:
        given["inputs"] += group.get("input") or []
        given["outputs"] += group.get("output") or []
    return _inputs_and_outputs(given, {})


def _assertions(row, tests):
    """MBPP: assert statements; the function is the one that they call and the solution defines."""
    setup = row.get("test_setup_code") or ""
    imports = row.get("test_imports")
    if isinstance(imports, list):
        setup = "\n".join([*imports, setup]).strip()
    entry = row.get("entry_point") or _called(tests[0], row.get("code"))
    return {"type": "assert", "entry_point": entry, "setup": setup, "tests": list(tests)}


def _called(test, solution):
    try:
        calls = [node.func for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"a test is no Python: {test!r:.60}") from None
    names = [function.id for function in calls if isinstance(function, ast.Name)]
    defined = re.findall(r"^(?:def|class)\s+(\w+)", solution or "", re.M)
    ours = [n for n in names if n in defined] or [n for n in names if not hasattr(builtins, n)]
    if not ours:
        raise ValueError(f"a test calls no function: {test!r:.60}")
    return ours[0]


def _test_source(row, source):
    """HumanEval: a function check(candidate). KodCode: functions test_...() of pytest."""
    about = row.get("test_info")
    about = about[0] if isinstance(about, list) and about and isinstance(about[0], dict) else {}
    entry = row.get("entry_point") or about.get("function_name")
    if re.search(r"^def check\(", source, re.M):
        if not re.search(rf"^check\({entry}\)", source, re.M):
            source += f"\n\ncheck({entry})\n"
        return {"type": "assert", "entry_point": entry, "tests": [source]}
    source, imported = re.subn(
        r"^from\s+\S*solution\S*\s+import\s+(?:\([^)]*\)|.*)$", "", source, flags=re.M
    )
    names = re.findall(r"^def (test_?\w*)\(\s*\)", source, re.M)
    if not names or not imported or not entry or re.search(r"^@pytest|^class Test", source, re.M):
        raise ValueError("the field 'test' is neither check(candidate) nor plain test_ functions")
    answer = {"type": "assert", "entry_point": entry, "setup": source.strip()}
    if declared := about.get("function_declaration"):
        answer["starter_code"] = declared
    return answer | {"tests": [f"{name}()" for name in names]}
