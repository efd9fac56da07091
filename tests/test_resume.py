"""A resume compares what data and models are, not their paths. Ctrl-C before a run is one line."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from tools import flags, refused, replaced, steps_of
from transformers import AutoModelForCausalLM, AutoTokenizer

import train
from runtime import checkpoint


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
    assert done.stderr == "train.py: stopped before the first step; nothing was saved\n"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_process_in_the_background_that_ignores_ctrl_c_goes_on_importing():
    done = interrupted_at("torch", "signal.SIG_IGN")
    assert done.returncode == 0 and "--task" in done.stdout


def interrupted_at(name, handler):
    """train.py --help, with a SIGINT when its imports reach the module `name`."""
    code = INTERRUPTED.format(name=name, handler=handler, root=str(ROOT))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
