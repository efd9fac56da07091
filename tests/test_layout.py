"""The promises about the files themselves: who imports whom, and what works when copied alone."""

import ast
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

OURS = {"rollout", "verifiers", "math_answers", "sandbox", "peer_context", "loss", "mopd", "train"}
OURS |= {"tiny", "analyze", "runtime"}
ALONE = {
    "peer_context": """
peers = peer_context.choose_peers([True, False, True], 0, n_success=2, n_failure=1)
assert peers.successes == (2,) and peers.failures == (1,)
context = peer_context.teacher_prompt("What is 1 + 1?", successes=["2"], failures=["It is 3."])
assert "It is 3." in context""",
    "verifiers": r"""
assert verifiers.verify("science", "<answer>B</answer>", "B").correct
gold = [{"Action": "f", "Action_Input": "{}"}]
assert verifiers.verify("tool", "Action: f\nAction Input: {}", gold).correct
program = {"type": "stdin", "tests": [{"input": "", "output": "1"}]}
for task, name, gold in (("math", "math_answers.py", "5"), ("code", "sandbox.py", program)):
    try:
        verifiers.verify(task, "```python\nprint(1)\n```", gold)
    except ModuleNotFoundError as error:
        assert name in str(error) and "copy it beside verifiers.py" in str(error)
    else:
        raise AssertionError(f"{task} without {name}")""",
    "math_answers": r"""
same = math_answers.same_answer
assert same(r"\frac12", "0.5") and not same("TFT", "TTF")""",
    "sandbox": r"""
assert sandbox.run_script("print(input() * 2)", "ab\n").output == "abab\n"
assert sandbox.run_function("def double(x): return 2 * x", "double", [4]).value == 8
assert sandbox.run_assertion("def double(x): return 2 * x", "assert double(4) == 8").problem == ""
""",
    "loss": """
import torch
h, w = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4)
t, v = torch.randn(5, 6), torch.randn(9, 6)
out = loss.distill_loss(h, w, t, v, torch.full((5,), 0.2))
out.loss.backward()
assert out.loss > 0 and h.grad.abs().sum() > 0""",
    "rollout": """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes))
groups = rollout.generate(model, [[1, 2, 3], [4]], 3, max_new_tokens=5, stop_ids=[0])
assert [len(group) for group in groups] == [3, 3]""",
}


def imports(path):
    """The top-level names of all modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


# in a process that has imported all of ours: take them out again, and the way to them
FORGET = """
ours = [{root!r} + folder for folder in ("", "/runtime", "/tests")]
for name, module in list(sys.modules.items()):
    if os.path.dirname(getattr(module, "__file__", None) or "") in ours:
        del sys.modules[name]
sys.path[:] = [{folder!r}, *(path for path in sys.path if path not in ours)]
os.chdir({folder!r})
import runpy
runpy.run_path("use.py", run_name="__main__")
"""


@pytest.mark.parametrize("name", ALONE)
def test_each_concept_file_works_copied_alone_into_an_empty_folder(name, tmp_path, request):
    shutil.copy(ROOT / f"{name}.py", tmp_path)
    (tmp_path / "use.py").write_text(f"import {name}\n{ALONE[name]}\n")
    if name in ("loss", "rollout"):  # those that wait for torch
        server = request.getfixturevalue("server")
        code = FORGET.format(root=str(ROOT), folder=str(tmp_path))
        assert server.run(code=code) == 0, server.log.read_text()
        return
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ALONE)
def test_concept_files_import_nothing_of_ours(name):
    allowed = {"loss": {"torch"}, "rollout": {"torch", "transformers"}}.get(name, set())
    found = imports(ROOT / f"{name}.py")
    assert not found & OURS
    assert {module for module in found if module not in sys.stdlib_module_names} <= allowed


@pytest.mark.parametrize("name, others", [("rollout", {"triton"}), ("loss", set())])
def test_a_fast_twin_imports_its_plain_file_and_nothing_else_of_ours(name, others):
    found = imports(ROOT / "runtime" / f"fast_{name}.py")
    assert found & (OURS | {"triton"}) == {name} | others  # Triton comes with torch
