"""A resume compares what data and models are, not their paths. Ctrl-C before a run is one line."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from tools import flags, refused, replaced, steps_of
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import train
from runtime import checkpoint, setup


def edited(out, change):
    """Change the newest checkpoint's record of data and models in place, as if written so."""
    newest = checkpoint.saved(out)[-1]
    path = newest / "state" / "run.json"
    stored = json.loads(path.read_text())
    change(stored["inputs"])
    path.write_text(json.dumps(stored))
    (newest / "manifest.json").unlink()
    checkpoint.write_manifest(newest)


@pytest.fixture(scope="module")
def one_step(folder, tmp_path_factory):
    """A run of one step whose teacher is a model of its own."""
    out = tmp_path_factory.mktemp("runs") / "one"
    train.main(taught(folder, out, "--steps", "1"))
    return out


def taught(place, out, *more):
    """Flags of a run with a teacher of its own, the model in the same place as the student's."""
    return flags(place, out, "--layout", "turn", "--teacher", str(place / "model"), *more)


def test_the_same_data_and_models_under_another_path_go_on(
    folder,
    tmp_path,
    one_step,
    monkeypatch,
):
    out = shutil.copytree(one_step, tmp_path / "out")
    shutil.copytree(folder, tmp_path / "moved")
    train.main(taught(tmp_path / "moved", out, "--steps", "2", "--resume"))
    monkeypatch.chdir(tmp_path)
    train.main(taught(type(folder)("moved"), "out", "--steps", "3", "--resume"))
    assert [line["step"] for line in steps_of(out) if "loss" in line] == [1, 2, 3]


def test_other_data_under_another_path_is_refused(folder, tmp_path, capsys, one_step):
    out = shutil.copytree(one_step, tmp_path / "out")
    (tmp_path / "other.jsonl").write_text((folder / "eval.jsonl").read_text())
    arguments = taught(folder, out, "--steps", "2", "--resume")
    line = refused(capsys, replaced(arguments, "--data", tmp_path / "other.jsonl"))
    assert f"--data {tmp_path / 'other.jsonl'}: its content is not what" in line
    line = refused(capsys, flags(folder, out, "--layout", "turn", "--resume"))
    assert f"--teacher is ema now and was {folder / 'model'}" in line


@pytest.mark.parametrize(
    "flag, value, says",
    [
        ("--task", "science", "--task is science now and was math in .*: resume with --task math"),
        ("--lr", "1", "--lr is 1.0 now and was 0.001 in .*: resume with --lr 0.001"),
        ("--plain", None, "--plain is True now and was False in .*: resume without --plain"),
        ("--lr=1", "--seed=7", r"1.0 now and was 0.001, --seed .* with --lr 0.001, with --seed 0$"),
        ("--is-clip", "2", "--is-clip is 2.0 now and was None in .*: resume without --is-clip"),
        ("--dtype", "bfloat16", "--dtype is bfloat16 now and .*: resume with --dtype float32"),
        ("--teacher", "frozen", "--teacher is frozen now and was .*: resume with --teacher /"),
    ],
)
def test_other_settings_are_refused_before_anything_is_loaded(
    folder, tmp_path, capsys, one_step, monkeypatch, flag, value, says
):
    """The tiny student was warmed up, or the model loaded, first."""
    out = shutil.copytree(one_step, tmp_path / "out")
    monkeypatch.setattr(setup, "load", lambda settings: pytest.fail("it was loaded"))
    line = refused(capsys, taught(folder, out, flag, *filter(None, [value]), "--resume"))
    assert re.search(says, line)


def test_another_kind_of_model_is_named_briefly_and_tiny_before_anything_is_loaded(
    folder, tmp_path, capsys, one_step, monkeypatch
):
    """17 settings of its configuration were listed."""
    out = shutil.copytree(one_step, tmp_path / "out")
    place = shutil.copytree(folder, tmp_path / "other")
    config = LlamaConfig(
        **json.loads((place / "model" / "config.json").read_text()) | {"hidden_size": 16},
    )
    config.update(dict(num_hidden_layers=2, intermediate_size=32, rms_norm_eps=1e-5))
    LlamaForCausalLM(config).save_pretrained(place / "model")
    arguments = replaced(taught(folder, out, "--resume"), "--model", place / "model")
    line = refused(capsys, arguments)
    assert line.count("config.") <= 3 and " more): " in line
    assert f": resume with --model {folder / 'model'}, or start a new run" in line
    monkeypatch.setattr(setup, "load", lambda settings: pytest.fail("it was loaded"))
    line = refused(capsys, ["--out", str(out), "--resume", "--device", "cpu"])
    assert "--model is tiny now and was " in line


def test_a_run_in_bfloat16_goes_on_on_a_cpu_with_the_flag_that_the_refusal_names(
    folder, tmp_path, capsys
):
    """bfloat16 is a GPU's default: the same command with --device cpu has another."""
    arguments = flags(folder, tmp_path / "out", "--method", "grpo", "--resume")
    train.main([*replaced(arguments, "--steps", 1), "--dtype", "bfloat16"])
    line = refused(capsys, arguments)
    assert "--dtype is float32 now and was bfloat16" in line
    assert line.endswith(": resume with --dtype bfloat16\n")
    train.main([*arguments, "--dtype", "bfloat16"])
    assert [line["step"] for line in steps_of(tmp_path / "out") if "loss" in line] == [1, 2, 3]
    capsys.readouterr()
    train.main([*arguments, "--dtype", "bfloat16"])
    said = "step-000003: all 3 --steps are done, a larger number trains on"
    assert said in capsys.readouterr().out


def test_settings_that_only_one_version_of_transformers_knows_do_not_stop_a_resume(
    folder,
    tmp_path,
    capsys,
    one_step,
):
    out = shutil.copytree(one_step, tmp_path / "out")

    def older(inputs):
        for whose in ("model", "teacher"):
            del inputs[whose]["config"]["rms_norm_eps"], inputs[whose]["config"]["rope_parameters"]
            inputs[whose]["config"]["long_gone"] = 1
            inputs[whose]["checksum"] = "that of the older configuration"

    edited(out, older)
    train.main(taught(folder, out, "--steps", "2", "--resume"))
    edited(out, lambda inputs: inputs["teacher"]["config"].update(hidden_act="gelu", rope_theta=1))
    line = refused(capsys, taught(folder, out, "--steps", "3", "--resume"))
    assert "--teacher" in line and "(config.hidden_act): put it back" in line


def test_a_checkpoint_that_recorded_one_checksum_for_a_model_is_resumed(
    folder,
    tmp_path,
    capsys,
    one_step,
):
    """So checkpoints did until transformers' new defaults made the same model another one."""
    out = shutil.copytree(one_step, tmp_path / "out")

    def older(inputs):
        for whose in ("model", "teacher"):
            inputs[whose] = inputs[whose]["checksum"]

    edited(out, older)
    train.main(taught(folder, out, "--steps", "2", "--resume"))
    edited(out, lambda inputs: inputs.update(teacher="another"))
    line = refused(capsys, taught(folder, out, "--steps", "3", "--resume"))
    assert "--teacher" in line and "its content is not what" in line


def test_the_checksum_of_a_model_is_the_one_that_older_checkpoints_recorded(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    config = model.config.to_dict()
    for name in [n for n in config if n[0] == "_"] + ["transformers_version", "dtype"]:
        del config[name]
    words = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    eos, special = model.generation_config.eos_token_id, tokenizer.all_special_ids
    parts = [config, eos, words, special, tokenizer.chat_template]
    sha = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    found = checkpoint.describe_model(model, tokenizer, weights=False)
    assert found["checksum"] == sha.hexdigest() and "weights" not in found
    for name, weight in model.state_dict().items():
        values = weight.flatten()[:: weight.numel() // 4096 + 1].numpy()
        sha.update(f"{name} {tuple(weight.shape)}".encode() + values.tobytes())
    assert checkpoint.describe_model(model, tokenizer)["checksum"] == sha.hexdigest()


def test_differences_are_named_down_to_the_setting():
    then = {
        "config": {"eps": 1, "text": {"heads": 2, "_name": "a", "old": 1}, "dtype": "x"},
        "t": "h",
    }
    now = {
        "config": {"eps": 1, "text": {"heads": 3, "_name": "b", "new": 1}, "dtype": "y"},
        "t": "i",
    }
    assert checkpoint.differences(then, then) == []
    assert checkpoint.differences(then, now) == ["config.text.heads", "t"]
    assert checkpoint.differences({"config": {"rope": None}}, {"config": {"rope": {}}}) == [
        "config.rope"
    ]
    assert checkpoint.differences("a", "b") == [""] and checkpoint.differences("a", "a") == []


INTERRUPTED = """
import os, runpy, signal, sys

class AtImport:
    def find_spec(self, name, *rest):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, {handler})
sys.path.insert(0, {root!r})
sys.meta_path.insert(0, AtImport())
sys.argv = ["train.py", "--help"]
runpy.run_path({root!r} + "/train.py", run_name="__main__")
"""


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("name", ["torch", pytest.param("mopd", marks=pytest.mark.slow)])
def test_ctrl_c_during_the_imports_is_one_line(name):
    done = interrupted_at(name, "signal.default_int_handler")
    assert done.returncode == 130
    assert done.stderr == "train.py: stopped before its first step; nothing new was saved\n"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_process_in_the_background_that_ignores_ctrl_c_goes_on_importing():
    done = interrupted_at("torch", "signal.SIG_IGN")
    assert done.returncode == 0 and "--task" in done.stdout


def interrupted_at(name, handler):
    """train.py --help, with a SIGINT when its imports reach the module `name`."""
    code = INTERRUPTED.format(name=name, handler=handler, root=str(ROOT))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
