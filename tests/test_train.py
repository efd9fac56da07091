"""The command line, data loading, the loop and its files, on a tiny model with random weights in a
folder of its own."""

import http.server
import json
import os
import re
import shutil
import threading

import pytest
import torch
from tools import flags, read_lines, refused, replaced, run_train, steps_of
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import tiny
import train
import verifiers
from runtime.data import read_problems, read_row

# --- bad input ---


@pytest.mark.parametrize(
    "change, says",
    [
        (["--no-such-flag", "1"], "unrecognized arguments: --no-such-flag"),
        (["--eval-temp", "1"], "unrecognized arguments: --eval-temp"),
        (["--method", "ppo"], "invalid choice: 'ppo'"),
        (["--method", "grpo", "--peers", "positive"], "--peers belongs to --method mopd"),
        (["--rollouts", "1"], "at least 2"),
        (["--method", "opd"], "needs --teacher MODEL"),
        (["--steps", "-1"], "not negative"),
        (["--lr", "-1"], "not negative"),
        (["--lr", "nan"], "must be finite"),
        (["--ema-rate", "2"], "at most 1"),
        (["--method", "grpo", "--layout", "turns"], "--layout has no meaning with --method grpo"),
        (["--layout", "columns"], "invalid choice: 'columns'"),
        (["--method", "rft", "--no-feedback"], "--no-feedback belongs to"),
        (["--method", "sdpo", "--no-feedback"], "--no-feedback belongs to"),
        (
            ["--method", "grpo", "--teacher", "frozen"],
            "--teacher has no meaning with --method grpo",
        ),
        (["--method", "rft", "--top-k", "5"], "--top-k has no meaning"),
        (["--teacher", "frozen", "--ema-rate", "0.1"], "--ema-rate needs --teacher ema"),
        (["--peers", "unrelated", "--problems", "1"], "at least 2"),
        (["--device", "warp"], "--device warp:"),
        (["--problems", "50"], "24 usable training rows are fewer than --problems 50"),
    ],
)
def test_wrong_flags_end_before_any_work_with_one_line(folder, tmp_path, capsys, change, says):
    assert says in refused(capsys, flags(folder, tmp_path / "out", *change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text, says",
    [
        (
            '{"prompt": "1+1", "answer": "2"}\n{"prompt": ',
            "bad.jsonl:2: not one JSON object: Expecting value at column 12",
        ),
        ('{"prompt": "1+1", "answer": "2"}\n\n[1]', "bad.jsonl:3: not a JSON object"),
        ('{"prompt": "1+1"}', "bad.jsonl:1: no field 'answer'"),
        ('{"prompt": 5, "answer": "2"}', "bad.jsonl:1: field 'prompt' is not a text"),
        ('{"prompt": "1+1", "answer": [2]}', "bad.jsonl:1:"),
        ('{"prompt": "1+1", "answer": "2", "system": 3}', "bad.jsonl:1: field 'system'"),
        ("", "no usable row"),
        ("\n\n", "no usable row"),
        ('{"prompt": "half a pair \\ud83d", "answer": "2"}', "bad.jsonl:1:"),
        ("[" * 100_000, "bad.jsonl:1:"),
        ('{"prompt": "1+1", "answer": "proof"}', "bad.jsonl:1: a math answer is a value"),
    ],
)
def test_bad_data_ends_before_any_work_and_names_the_line(folder, tmp_path, capsys, text, says):
    (tmp_path / "bad.jsonl").write_text(text)
    assert says in refused(
        capsys, replaced(flags(folder, tmp_path / "out"), "--data", tmp_path / "bad.jsonl")
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "task, answer",
    [("science", "AB1"), ("tool", "{}"), ("code", {"type": "stdin", "tests": []}), ("math", [3])],
)
def test_an_answer_of_the_wrong_shape_for_the_task_is_refused(
    folder, tmp_path, capsys, task, answer
):
    (tmp_path / "bad.jsonl").write_text(json.dumps({"prompt": "?", "answer": answer}))
    arguments = replaced(
        replaced(flags(folder, tmp_path / "out"), "--data", tmp_path / "bad.jsonl"), "--task", task
    )
    assert "bad.jsonl:1:" in refused(capsys, arguments)


def test_missing_file_and_missing_model_are_refused(folder, tmp_path, capsys):
    assert "no such data file: gone.jsonl" in refused(
        capsys, replaced(flags(folder, tmp_path / "out"), "--data", "gone.jsonl")
    )
    (tmp_path / "empty").mkdir()
    line = refused(capsys, replaced(flags(folder, tmp_path / "out"), "--model", tmp_path / "empty"))
    assert f"cannot load a model from {tmp_path / 'empty'}" in line


def test_an_existing_run_is_not_overwritten(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.jsonl").write_text("precious\n")
    assert "is not empty" in refused(capsys, flags(folder, tmp_path / "out"))
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == "precious\n"


def test_resuming_a_folder_that_is_not_a_run_touches_nothing_in_it(folder, tmp_path, capsys):
    (tmp_path / "notes.jsonl").write_text("mine\n")
    assert "is not the folder of a run" in refused(capsys, flags(folder, tmp_path, "--resume"))
    assert (tmp_path / "notes.jsonl").read_text() == "mine\n"


def test_text_that_is_not_utf8_is_refused_with_its_line(folder, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_bytes(
        b'{"prompt": "1+1", "answer": "2"}\n{"prompt": "\xe9", "answer": "2"}\n'
    )
    assert "bad.jsonl:2:" in refused(
        capsys, replaced(flags(folder, tmp_path / "out"), "--data", tmp_path / "bad.jsonl")
    )


def test_bad_rows_are_left_out_where_asked_and_counted_in_the_settings(folder, tmp_path, capsys):
    path, row = tmp_path / "some.jsonl", json.dumps({"prompt": "Prove it.", "answer": "proof"})
    path.write_text((folder / "train.jsonl").read_text() + row + "\n")
    arguments = replaced(flags(folder, tmp_path / "out", "--steps", "1"), "--data", path)
    assert f"1 of 25 rows cannot be read (--skip-bad-rows leaves them out): {path}:25: " in refused(
        capsys, arguments
    )
    train.main([*arguments, "--skip-bad-rows"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["bad_rows"] == {str(path): 1} and config["skip_bad_rows"]


def test_no_steps_evaluate_and_end(folder, tmp_path, capsys):
    train.main(flags(folder, tmp_path / "out", "--steps", "0", "--problems", "999"))
    (line,) = [json.loads(text) for text in (tmp_path / "out" / "metrics.jsonl").open()]
    assert line["step"] == 0 and line["eval_k"] == 2
    said = capsys.readouterr().out
    assert not list((tmp_path / "out").glob("step-*")) and "disk:" not in said
    assert "held-out mean@2: 0.000 at step 0\n" in said and "curves: " in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "0.000 at step 0; no steps<br>" in page and "No tokens were recorded" in page
    arguments = flags(folder, tmp_path / "out2", "--steps", "0")
    at = arguments.index("--eval-data")
    assert "--steps 0 evaluates and ends" in refused(capsys, arguments[:at] + arguments[at + 2 :])


def test_the_start_says_what_the_checkpoints_take_of_what_is_free(
    folder, tmp_path, capsys, monkeypatch
):
    train.main(flags(folder, tmp_path / "a", "--steps", "1", "--keep", "3"))
    parameters = sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(folder / "model").parameters()
    )
    line = re.search(
        r"disk: (\d+) checkpoints at a time ([\d,]+) MiB; .* free", capsys.readouterr().out
    )
    # weights, two moments and the EMA, in float32
    assert int(line[1]) == 1 and int(line[2]) == round(parameters * 4 * 4 / 2**20)
    files = (tmp_path / "a" / "step-000001").rglob("*")
    written = sum(p.stat().st_size for p in files if "tokenizer" not in p.name)
    assert 0 < written - parameters * 16 < 300_000  # the headers of the files
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    train.main(flags(folder, tmp_path / "b", "--steps", "1"))
    assert "0 MiB are free: NOT ENOUGH" in capsys.readouterr().out


def test_evaluating_on_the_training_file_is_a_warning(folder, tmp_path, capsys):
    train.main(
        replaced(
            flags(folder, tmp_path / "out", "--steps", "1"), "--eval-data", folder / "train.jsonl"
        )
    )
    assert "warning: 24 of 24 evaluation rows have the prompt of" in capsys.readouterr().out


@pytest.mark.parametrize("flag", [["--data", "x"], ["--system-field", "x"], ["--skip-bad-rows"]])
def test_flags_about_data_without_a_model_are_refused(capsys, flag):
    """All but --data were ignored: the tiny student has a world of its own."""
    assert f"{flag[0]} needs --model: the tiny student" in refused(capsys, flag)


def test_rows_that_are_too_long_are_left_out_and_counted(folder, tmp_path, capsys):
    long = json.dumps({"prompt": "x" * 400, "answer": "1"})
    (tmp_path / "some.jsonl").write_text((folder / "train.jsonl").read_text() + long + "\n")
    train.main(
        replaced(flags(folder, tmp_path / "out", "--steps", "1"), "--data", tmp_path / "some.jsonl")
    )
    assert (
        "1 of 25 rows are too long for the model with --max-new-tokens 8 and left out"
        in capsys.readouterr().out
    )
    (tmp_path / "long.jsonl").write_text(long)
    assert "no usable row" in refused(
        capsys, replaced(flags(folder, tmp_path / "out2"), "--data", tmp_path / "long.jsonl")
    )


def test_fields_can_be_renamed_and_instructions_stand_in_for_a_system_message(tmp_path):
    rows = [
        {"question": "1+1", "gold": "2", "sys": "Be brief."},
        {"question": "1+2", "gold": "3", "sys": None},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    problems = read_problems(
        str(tmp_path / "rows.jsonl"),
        "math",
        prompt_field="question",
        answer_field="gold",
        system_field="sys",
    )
    assert [(p.prompt, p.answer, p.key) for p in problems] == [("1+1", "2", 0), ("1+2", "3", 1)]
    assert [p.system for p in problems] == ["Be brief.", verifiers.INSTRUCTIONS["math"]]


def test_code_prompts_say_what_the_tests_will_call():
    test = [{"input": "1", "output": "2"}]

    def prompt(text, **answer):
        return read_row({"prompt": text, "answer": {"tests": test, **answer}}, "code", 0).prompt

    assert prompt("Find the last one.", type="functional", entry_point="last").endswith(
        "must be called last."
    )
    assert prompt("Call last(x).", type="functional", entry_point="last") == "Call last(x)."
    assert "class Solution" in prompt(
        "Double it.",
        type="functional",
        entry_point="f",
        starter_code="class Solution:\n  def f(self, x):",
    )
    assert prompt("Double it.", type="functional", entry_point="double_it").endswith(
        "must be called double_it."
    )
    assert prompt("def g(x): # double", type="functional", entry_point="g") == "def g(x): # double"
    assert prompt("Read and double.", type="stdin") == "Read and double."


def test_the_tiny_tool_world_shows_no_feedback_for_it_is_the_same_for_every_wrong_action():
    quiet = {task: train.Settings(task=task).no_feedback for task in verifiers.TASKS}
    assert quiet == {"math": False, "code": False, "science": False, "tool": True}
    assert not train.Settings(task="tool", method="sdpo").no_feedback
    assert not train.Settings(task="tool", model="m", data="d").no_feedback


# --- the loop ---

METRICS = (
    "step loss success groups_mixed groups_all_right groups_all_wrong truncated unweighted "
    "lone_success completion_tokens mean_completion_length sampler_gap grad_norm lr seconds"
).split()


def test_a_run_writes_metrics_samples_settings_and_an_ordinary_checkpoint(folder, tmp_path, capsys):
    train.main(flags(folder, tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "held-out mean@2" in printed and str(tmp_path / "out") in printed
    lines = read_lines(tmp_path / "out" / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all(name in line for line in steps for name in METRICS)
    phases = {"rollout", "verify", "teacher", "student"}
    assert [set(line["seconds"]) - phases for line in steps] == [{"view"}] * 3
    assert all(phases <= set(line["seconds"]) for line in steps)
    assert all(
        line["groups_mixed"] + line["groups_all_right"] + line["groups_all_wrong"] == 3
        for line in steps
    )
    assert [line["step"] for line in lines if "eval_k" in line] == [0, 2, 3]
    names = {
        "step",
        "eval_mean_at_k",
        "eval_pass_at_k",
        "eval_k",
        "eval_distinct_answers",
        "eval_right",
        "oom_retries",
    }
    assert all(set(line) == names for line in lines if "eval_k" in line)
    samples = read_lines(tmp_path / "out" / "samples.jsonl")
    assert {line["step"] for line in samples} == {1, 2, 3} and all(
        len(line["attempts"]) == 4 for line in samples
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["peers"] == "contrastive"
    saved = tmp_path / "out" / "step-000003" / "model"
    AutoTokenizer.from_pretrained(saved)
    assert AutoModelForCausalLM.from_pretrained(saved).dtype == torch.float32
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_two_runs_of_the_same_settings_are_equal_and_another_seed_is_not(
    folder, tmp_path, two_threads
):
    for name, more in (("a", []), ("b", []), ("c", ["--seed", "1"])):
        train.main(flags(folder, tmp_path / name, *more))
    assert steps_of(tmp_path / "a") == steps_of(tmp_path / "b") != steps_of(tmp_path / "c")


def test_a_resumed_run_is_the_run_that_never_stopped(folder, tmp_path, two_threads):
    """The teacher and the optimizer must be in the checkpoint, and the data must go on where it
    was."""
    train.main(flags(folder, tmp_path / "whole", "--steps", "4", "--ema-rate", "0.5"))
    train.main(flags(folder, tmp_path / "parts", "--steps", "2", "--ema-rate", "0.5"))
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write(
            '{"step": 3, "loss": 0.1}\n{"step": 4, "lo'
        )  # what a run that died in step 4 leaves behind
    train.main(flags(folder, tmp_path / "parts", "--steps", "4", "--ema-rate", "0.5", "--resume"))
    assert steps_of(tmp_path / "whole") == steps_of(tmp_path / "parts")
    weights = [
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "step-000004" / "model").state_dict()
        for name in ("whole", "parts")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_run_on_a_gpu_agrees_with_the_cpu_and_can_go_on_there(folder, tmp_path):
    train.main(flags(folder, tmp_path / "cpu"))
    train.main(
        replaced(flags(folder, tmp_path / "float32"), "--device", "cuda") + ["--dtype", "float32"]
    )
    for a, b in zip(steps_of(tmp_path / "cpu"), steps_of(tmp_path / "float32"), strict=True):
        assert a.keys() == b.keys() and a.get("completion_tokens") == b.get("completion_tokens")
        assert (
            a.get("loss") == pytest.approx(b.get("loss"), rel=1e-3)
            and (b.get("sampler_gap") or 0) < 1e-4
        )
        assert a.get("grad_norm") == pytest.approx(b.get("grad_norm"), rel=1e-3)
    gpu = replaced(flags(folder, tmp_path / "bfloat16"), "--device", "cuda")
    train.main(gpu)
    train.main(replaced(gpu, "--steps", 4) + ["--resume"])
    train.main(
        replaced(replaced(gpu, "--steps", 5), "--device", "cpu")
        + ["--resume", "--dtype", "bfloat16"]
    )
    steps = [line for line in steps_of(tmp_path / "bfloat16") if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    assert all(line["sampler_gap"] < 0.05 for line in steps if line["scored_tokens"])


def test_resuming_with_other_mathematics_is_refused_and_an_empty_folder_starts_afresh(
    folder, tmp_path, capsys
):
    train.main(flags(folder, tmp_path / "out", "--steps", "1", "--resume"))
    assert "starting afresh" in capsys.readouterr().out
    assert "--ema-rate" in refused(
        capsys, flags(folder, tmp_path / "out", "--ema-rate", "0.5", "--resume")
    )


@pytest.mark.parametrize(
    "method",
    [
        ["--method", "grpo"],
        ["--method", "rft"],
        ["--method", "sdpo"],
        ["--peers", "random"],
        ["--peers", "unrelated"],
        ["--peers", "success_only"],
        ["--peers", "positive", "--teacher", "frozen"],
        [
            "--teacher",
            "current",
            "--divergence",
            "reverse",
            "--reduction",
            "sequence",
            "--top-k",
            "5",
        ],
        ["--no-feedback", "--is-clip", "2", "--gradient-checkpointing", "--divergence", "forward"],
    ],
)
def test_every_method_runs(folder, tmp_path, method):
    train.main(flags(folder, tmp_path / "out", "--steps", "2", *method))
    steps = [line for line in steps_of(tmp_path / "out") if "loss" in line]
    assert len(steps) == 2 and all(line["loss"] == line["loss"] for line in steps)


def test_the_device_decides_how_many_tokens_are_scored_at_once(folder, capsys):
    data = ["--model", str(folder / "model"), "--data", str(folder / "train.jsonl")]
    assert train.parse([*data, "--device", "cpu"]).micro_tokens == 2048
    assert train.parse([*data, "--device", "meta"]).micro_tokens == 8192
    assert train.parse([*data, "--device", "cpu", "--micro-tokens", "100"]).micro_tokens == 100
    assert (
        train.parse(["--device", "cpu"]).micro_tokens
        == train.parse(["--device", "meta"]).micro_tokens
        == 4096
    )
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    assert "(default 8192, on a CPU 2048; tiny: 4096)" in " ".join(capsys.readouterr().out.split())


def test_gradient_checkpointing_leaves_no_hooks_which_would_slow_the_rollouts(folder, tmp_path):
    run = train.prepare(train.parse(flags(folder, tmp_path / "out", "--gradient-checkpointing")))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in run.student.modules())
    assert any(getattr(m, "gradient_checkpointing", False) for m in run.student.modules())


def test_opd_with_a_teacher_of_another_size(folder, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 8,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    train.main(
        flags(
            folder,
            tmp_path / "out",
            "--steps",
            "2",
            "--method",
            "opd",
            "--teacher",
            str(tmp_path / "teacher"),
        )
    )
    steps = [line for line in steps_of(tmp_path / "out") if "loss" in line]
    assert all(line["loss"] > 0 and line["unweighted"] == 0 for line in steps)
    other = tiny.build_tokenizer("tool", verifiers.INSTRUCTIONS["tool"], verifiers.verify)
    other.save_pretrained(tmp_path / "teacher")
    assert "vocabulary differs" in refused(
        capsys,
        flags(folder, tmp_path / "out2", "--method", "opd", "--teacher", str(tmp_path / "teacher")),
    )


def test_a_step_without_anything_to_learn_changes_nothing_and_is_counted(folder, tmp_path):
    """All groups wrong: GRPO has no advantage. AdamW's weight decay must not move the student
    either."""
    train.main(
        flags(
            folder,
            tmp_path / "out",
            "--method",
            "grpo",
            "--max-new-tokens",
            "1",
            "--weight-decay",
            "0.5",
        )
    )
    steps = [line for line in steps_of(tmp_path / "out") if "loss" in line]
    assert all(
        line["groups_all_wrong"] == 3
        and line["loss"] == 0
        and line["grad_norm"] is None
        and line["unweighted"] == 12
        and line["sampler_gap"] is None
        for line in steps
    )
    before = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32
    ).state_dict()
    after = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out" / "step-000003" / "model"
    ).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_only_the_last_checkpoints_are_kept(folder, tmp_path):
    train.main(flags(folder, tmp_path / "out", "--steps", "4", "--save-every", "1", "--keep", "2"))
    assert sorted(path.name for path in (tmp_path / "out").glob("step-*")) == [
        "step-000003",
        "step-000004",
    ]


def test_no_problem_comes_twice_in_a_step_and_an_epoch_shows_each_once():
    settings = train.Settings(problems=4)
    problems = list(range(10))
    batches = [train.batch_of(problems, step, settings) for step in range(1, 9)]
    assert all(len(set(batch)) == 4 for batch in batches)
    assert (
        len(set(batches[0] + batches[1])) == 8
        and batches[0] + batches[1] != batches[2] + batches[3]
    )


# --- the Hub ---


class FakeHub(http.server.BaseHTTPRequestHandler):
    """The part of the Hub's protocol that downloading a file needs."""

    def respond(self, body):
        parts = self.path.split("?")[0].strip("/").split("/")
        data = parts[0] == "datasets"
        name = "/".join(parts[5:] if data else parts[4:])
        path = self.server.folder / ("" if data else "model") / name
        known = parts[-3:-1] == ["resolve", "main"] and path.is_file()
        self.send_response(200 if known else 404)
        content = path.read_bytes() if known else b""
        for key, value in (
            ("ETag", f'"{name}-{len(content)}"'),
            ("X-Repo-Commit", "0" * 40),
            ("Content-Length", str(len(content))),
            *([] if known else [("X-Error-Code", "EntryNotFound")]),
        ):
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_GET(self):
        self.respond(True)

    def do_HEAD(self):
        self.respond(False)

    def log_message(self, *args):
        pass


def test_model_and_data_come_from_the_hub(folder, tmp_path):
    """The real download code against a local stand-in that speaks the Hub's protocol.

    In a process of its own: the Hub's client reads its environment when it is imported.
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.folder = folder
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        arguments = replaced(
            flags(folder, tmp_path / "out", "--steps", "1"), "--model", "someone/tiny-llama"
        )
        arguments = replaced(arguments, "--data", "someone/sums:train.jsonl")
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }
        assert "held-out mean@2" in run_train(*arguments, env=environment, cwd=tmp_path)
        assert (tmp_path / "out" / "step-000001" / "model" / "config.json").is_file()
    finally:
        server.shutdown()
