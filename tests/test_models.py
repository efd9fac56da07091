"""Tests of runtime/models.py: output layers, the check at start, and what is refused in loading."""

import inspect
import json
import re
import warnings
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_mopd import END_ID, TOKENIZER, V, build_tokenizer, tiny

import loss
import mopd
import rollout
from runtime import fast_rollout, fast_scoring, models

HEADS = {
    "plain": ("LlamaConfig", {}),
    "tied": ("LlamaConfig", dict(tie_word_embeddings=True)),
    "gpt2": ("GPT2Config", {}),
    "qwen3": ("Qwen3Config", dict(head_dim=8)),
    "scale of 1": ("GraniteConfig", dict(logits_scaling=1.0)),
    "no cap": ("Gemma2Config", dict(head_dim=8, final_logit_softcapping=None)),
    "scale": ("GraniteConfig", dict(logits_scaling=8.0)),
    "large scale": ("CohereConfig", dict(logit_scale=40.0)),
    "cap": ("Gemma2Config", dict(head_dim=8, final_logit_softcapping=30.0)),
    "bias": ("PhiConfig", {}),
    "scaled states": ("MiniCPM3Config", dict(dim_model_base=8, num_key_value_heads=4)),
}
PLAIN = ("plain", "tied", "gpt2", "qwen3", "scale of 1", "no cap")
QWEN35 = dict(layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2)
QWEN35 |= dict(linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8)


def with_head(kind, **options):
    name, changes = HEADS[kind]
    if not hasattr(transformers, name):
        pytest.skip(f"this version of transformers has no {name}")
    model = tiny(name, dtype=torch.float32, **changes, **options)
    if kind == "bias":  # new models have zeros there, which no comparison could see
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    return model


# --- the output layer ---


@pytest.mark.parametrize("spread", [0.1, 4.0])
@pytest.mark.parametrize("kind", HEADS)
def test_head_gives_the_models_own_logits(kind, spread):
    """Spread 0.1: the logits are so small that a cap cannot be seen in them."""
    model, ids = with_head(kind, spread=spread), torch.arange(20)[None]
    output = models.head(model)
    assert isinstance(output, loss.Head) == (kind not in PLAIN)
    with torch.no_grad():
        hidden = models.backbone(model)(ids).last_hidden_state[0]
        for factor in (1.0, 30.0):  # where the cap bends them
            hook = models.backbone(model).register_forward_hook(
                lambda module, inputs, out, factor=factor: enlarged(out, factor)
            )
            logits = model(ids).logits[0]
            hook.remove()
            found = loss.as_head(output).logits(hidden * factor)
            torch.testing.assert_close(found, logits, rtol=2e-4, atol=2e-4 * logits.abs().max())


def enlarged(output, factor):
    output.last_hidden_state = output.last_hidden_state * factor
    return output


@pytest.mark.parametrize("kind", HEADS)
def test_gradient_through_the_head_is_autograds(kind):
    model = with_head(kind)
    ids, target = torch.arange(12)[None], torch.arange(1, 13)

    def gradients(value):
        model.zero_grad()
        value.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    logits = model(ids).logits[0]
    wanted = gradients(torch.nn.functional.cross_entropy(logits, target))
    hidden = models.backbone(model)(ids).last_hidden_state[0]
    out = loss.nll_loss(hidden, models.head(model), target, torch.full((12,), 1 / 12))
    found = gradients(out.loss)
    assert found.keys() == wanted.keys()
    for name in wanted:
        size = wanted[name].abs().max()
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-4 * float(size))


def test_cap_that_the_configuration_does_not_name_is_refused():
    """Small logits show no cap: only enlarged hidden states do."""
    model = tiny(dtype=torch.float32, spread=0.1)
    forward = model.forward

    def capped(*args, **options):
        out = forward(*args, **options)
        out.logits = 5 * torch.tanh(out.logits / 5)
        return out

    model.forward = capped
    with pytest.raises(ValueError, match="some/model: its logits are no cap"):
        models.fit_head(model, "some/model")


def test_rows_that_the_model_cuts_off_are_no_tokens():
    model = tiny(dtype=torch.float32, vocab_size=V + 6)
    forward = model.forward

    def cut(*args, **options):
        out = forward(*args, **options)
        out.logits = out.logits[..., :V]
        return out

    model.forward = cut
    assert models.vocabulary_size(model) == len(models.head(model)) == V


def test_copy_of_a_model_keeps_its_head():
    student = with_head("scale")
    teacher = mopd.make_teacher("ema", student, TOKENIZER)
    assert models.head(teacher.model).scale == models.head(student).scale == pytest.approx(1 / 8)


def test_model_without_an_output_matrix_is_refused():
    with pytest.raises(ValueError, match="some/model: no output matrix"):
        models.check_model(tiny().base_model, "some/model")


# --- the check at start ---


@pytest.mark.parametrize("kind", HEADS)
def test_sound_models_pass_and_their_mode_is_put_back(kind, capsys):
    for training in (True, False):
        model = with_head(kind).train(training)
        models.check_model(model, "some/model")
        assert model.training == training
    assert capsys.readouterr().out == ""


def test_plain_paths_are_checked_like_the_fast_ones():
    models.check_model(tiny(), "some/model", rollout.generate, mopd.hidden_states)


def shifted(model, prompts, k, **options):
    """A sampler whose log-probabilities are off by 0.02 nats."""
    groups = fast_rollout.generate(model, prompts, k, **options)
    for r in (r for group in groups for r in group):
        r.logprobs = [x - 0.02 for x in r.logprobs]
    return groups


def test_sampler_that_is_off_is_refused_with_the_figure():
    with pytest.raises(ValueError, match=r"some/model: .* its sampler are 0\.02 nats off"):
        models.check_model(tiny(), "some/model", shifted)


def test_training_path_that_is_off_is_refused_with_the_figure():
    def disturbed(model, prompts, completions):
        return 1.5 * mopd.hidden_states(model, prompts, completions)

    with pytest.raises(ValueError, match=r"its training path are [\d.]+ nats off"):
        models.check_model(tiny(), "some/model", hidden_states=disturbed)


def test_difference_in_one_draw_only_is_a_near_tie_and_no_fault():
    calls = []

    def once(model, prompts, k, **options):
        calls.append(options["seed"])
        return (shifted if len(calls) == 1 else fast_rollout.generate)(model, prompts, k, **options)

    models.check_model(tiny(), "some/model", once)
    assert calls == [0, 1]


def test_padding_is_given_up_where_it_alone_is_wrong(capsys):
    """As Llama 4 beyond `floor_scale`: attention counts columns instead of positions."""
    model = tiny(dtype=torch.float32)
    forward = model.forward

    def counts_padding(input_ids, attention_mask=None, **options):
        if attention_mask is not None and attention_mask.shape[-1] == input_ids.shape[-1]:
            options.pop("position_ids", None)  # the model then counts padding, too
        return forward(input_ids, attention_mask=attention_mask, **options)

    counts_padding.__signature__ = inspect.signature(forward)
    model.forward = counts_padding
    models.check_model(model, "some/model")
    assert "prompts are not padded in sampling" in capsys.readouterr().out
    assert not rollout.can_pad(model)


def test_sharing_is_given_up_where_it_alone_is_wrong(capsys):
    """GPT-Neo's local attention counts the columns that shared prompts leave empty."""
    layers = dict(attention_types=[[["global", "local"], 1]], num_layers=2, window_size=4)
    model = tiny("GPTNeoConfig", dtype=torch.float32, num_heads=4, **layers)
    assert fast_scoring.can_share(model)
    models.check_model(model, "some/model")
    assert "prompts are not shared in scoring" in capsys.readouterr().out
    assert not fast_scoring.can_share(model)


def test_one_prompt_is_longer_than_the_window():
    model, seen = tiny("MistralConfig", dtype=torch.float32, sliding_window=40), []

    def noting(model, prompts, k, **options):
        seen.extend(map(len, prompts))
        return fast_rollout.generate(model, prompts, k, **options)

    models.check_model(model, "some/model", noting)
    assert max(seen) > 40


def test_window_that_takes_too_long_to_try_is_said(capsys):
    model = tiny("MistralConfig", dtype=torch.float32, sliding_window=200)
    models.check_model(model, "some/model", seconds=0.0)
    assert "no prompt beyond its window of 200 tokens was tried" in capsys.readouterr().out


def test_whatever_a_model_raises_inside_is_one_line_with_its_name():
    model = tiny(dtype=torch.float32)
    models.head(model)

    def broken(*args, **options):
        raise RuntimeError("size of tensor a\nmust match")

    with pytest.raises(ValueError, match="some/model cannot be trained here: RuntimeError: size"):
        models.check_model(model, "some/model", broken)


def test_bfloat16_rounding_passes():
    model = tiny(dtype=torch.float32, spread=1.0)
    models.check_model(model, "some/model", autocast=lambda: torch.autocast("cpu", torch.bfloat16))


def test_steps_of_mamba_layers_are_not_clamped_where_decoding_does_not_clamp_them(capsys):
    changes = dict(mamba_num_heads=8, mamba_head_dim=8, n_groups=1, ssm_state_size=8, chunk_size=8)
    changes |= dict(layers_block_type=["mamba", "attention"], time_step_min=0.5)
    model = tiny("NemotronHConfig", dtype=torch.float32, **changes)
    with torch.no_grad():  # larger states, or nobody would see the steps
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.25)
    models.check_model(model, "some/model")
    assert "do not clamp their steps" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_sequences_end_where_the_positions_would_follow_the_longest_row(kind):
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    changes = dict(max_position_embeddings=30)
    if kind == "longrope":
        rope |= dict(short_factor=[1.0] * 4, long_factor=[2.0] * 4)
        rope |= dict(original_max_position_embeddings=30)
        changes = dict(max_position_embeddings=60)
    model = tiny(dtype=torch.float32, rope_parameters=rope, **changes)
    assert models.max_length(model) == 30
    models.check_model(model, "some/model")
    with pytest.raises(ValueError, match="exceed the model's 30 positions"):
        rollout.generate(model, [[5] * 20], 1, max_new_tokens=11, stop_ids=[])


def test_cache_argument_brings_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models.check_model(tiny(), "some/model")


# --- the teacher's vocabulary ---


def test_teacher_with_more_added_tokens_is_accepted_and_cut_to_the_shared_ones():
    more, model = build_tokenizer(extra=["<later>"]), tiny(vocab_size=V + 8)
    for pair in ((TOKENIZER, more), (more, TOKENIZER)):
        teacher = mopd.make_teacher("big", model, pair[0], tiny(seed=1, vocab_size=V + 8), pair[1])
        assert teacher.vocabulary == V


# --- loading ---


@pytest.fixture
def folder(tmp_path):
    """A sound model folder, to be damaged."""
    path = tmp_path / "model"
    tiny(dtype=torch.float32, pad_token_id=END_ID).save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return path


def change(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(folder, edit):
    file = folder / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata={"format": "pt"})


def refused(folder, pattern):
    """The refusal is one line that names the folder."""
    with pytest.raises(ValueError, match=pattern) as caught:
        models.load_model(str(folder))
    text = str(caught.value)
    assert str(folder) in text and "\n" not in text
    return text


def test_sound_folder_loads_in_float32_and_says_nothing(folder, capsys):
    model, tokenizer = models.load_model(str(folder))
    assert model.dtype == torch.float32 and not model.training
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert capsys.readouterr().out == ""


def test_missing_weights_are_refused_by_name(folder):
    """They would be random numbers, trained to the end with exit status 0."""
    change_weights(folder, lambda w: w.pop("model.layers.1.mlp.down_proj.weight"))
    refused(folder, r"its files lack model\.layers\.1\.mlp\.down_proj\.weight")


def test_misnamed_weights_are_refused_with_both_names(folder):
    def rename(w):
        w["model.layers.0.attention.q.weight"] = w.pop("model.layers.0.self_attn.q_proj.weight")

    change_weights(folder, rename)
    text = refused(folder, "its files lack model.layers.0.self_attn.q_proj.weight")
    assert "model.layers.0.attention.q.weight" in text


def test_weights_of_the_wrong_size_are_refused_by_name(folder):
    change(folder, intermediate_size=40)
    text = refused(folder, "of the wrong size")
    assert "mlp" in text and "48" in text and "40" in text


def test_tied_head_and_spare_weights_are_no_fault(folder):
    change(folder, tie_word_embeddings=True)
    change_weights(folder, lambda w: w.pop("lm_head.weight"))
    change_weights(folder, lambda w: w.update({"visual.patch.weight": torch.zeros(2, 2)}))
    models.load_model(str(folder))


def test_adapter_folder_is_refused_with_the_way_out(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(folder, "adapter .LoRA.: merge it")


def test_git_lfs_pointer_is_refused_with_the_way_out(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "model.safetensors").write_text(pointer)
    refused(folder, r"model\.safetensors is a Git LFS pointer.*git lfs pull")


def test_quantised_weights_are_refused_with_the_way_out(folder):
    change(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(folder, r"quantised weights \(gptq\).*unquantised")


def test_custom_code_is_not_run_and_not_asked_for(folder):
    change(folder, model_type="own", auto_map={"AutoConfig": "own.Config"})
    (folder / "own.py").write_text("raise SystemExit('ran')")
    refused(folder, "code from its own repository")


def test_unknown_architecture_says_that_a_newer_version_may_know_it(folder):
    change(folder, model_type="of_tomorrow")
    refused(folder, "of_tomorrow.*newer transformers")


@pytest.mark.parametrize("inner", ["step-000020/model", "model"])
def test_folder_of_a_run_names_its_newest_model(folder, tmp_path, inner):
    run = tmp_path / "run"
    for name in ("step-000010/model", inner):
        (run / name).mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            (run / name / file.name).write_bytes(file.read_bytes())
    (run / "config.json").write_text('{"task": "math"}')
    wanted = "step-000020" if "20" in inner else "step-000010"
    refused(run, re.escape(f"{wanted}/model"))


def test_folder_without_a_tokenizer_names_the_files_to_copy(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    refused(folder, r"no tokenizer.*copy tokenizer\.json")


def test_stop_token_beyond_the_head_is_refused(folder):
    file = folder / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [END_ID, V + 70]}))
    refused(folder, f"a stop token has id {V + 70}")


def test_template_beyond_the_head_is_refused(folder):
    """An index error of the embedding, inside the first step."""
    build_tokenizer(
        extra=["<turn>"], chat=TOKENIZER.chat_template.replace("<|{{", "<turn><|{{")
    ).save_pretrained(folder)
    refused(folder, rf"the chat template has id {V} \(<turn>\)")


def test_other_tokens_beyond_the_head_are_said_once(folder, capsys):
    """Gemma 3's small text models have a token of images more than rows."""
    build_tokenizer(extra=["<image>"]).save_pretrained(folder)
    models.load_model(str(folder))
    assert f"1 tokens of its tokenizer, from '<image>' ({V}) on" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["/nothing", "./a/b", "~/a", "runs/x/model", "a b", "a/"])
def test_missing_folder_is_no_hub_id(name):
    """runs/x/model was looked for on the Hub, and the line said that it must be a Hub id."""
    with pytest.raises(ValueError, match=f"no such model folder: {name}"):
        models.load_model(name)


@pytest.mark.parametrize("offline", [False, True])
def test_model_of_the_hub_without_a_network_says_what_is_fetched_and_what_to_do(
    monkeypatch, capsys, offline
):
    """Half a minute of silence, then half a minute more in search of an adapter."""

    def fails(*args, **options):
        assert "a/b: no folder here, so it is fetched from the Hub" in capsys.readouterr().out
        raise OSError("We couldn't connect\nmore") from ConnectionError("Name not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(models.AutoConfig, "from_pretrained", fails)
    monkeypatch.setattr(models, "find_adapter_config_file", pytest.fail)
    says = r"the Hub cannot be reached \(Name not known\): HF_HUB_OFFLINE=1 takes"
    if offline:
        says = "HF_HUB_OFFLINE is set, and it was not downloaded before"
    with pytest.raises(ValueError, match=f"no such folder here; {says}.* local file or folder$"):
        models.load_model("a/b")


@pytest.mark.parametrize("status, says", [(404, "no such thing"), (429, "answered 429: try again")])
def test_an_answer_of_the_hub_is_no_missing_network(monkeypatch, status, says):
    class Answered(Exception):
        response = SimpleNamespace(status_code=status)

    def fails(*args, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("We couldn't connect") from Answered()

    monkeypatch.setattr(models.AutoConfig, "from_pretrained", fails)
    with pytest.raises(ValueError, match=says):
        models.load_model("a/b")


def test_file_in_place_of_a_model_and_folder_without_one_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="no such model folder: ~nobody/x"):
        models.load_model("~nobody/x")
    file = folder / "model.safetensors"
    refused(file, "is a file: give its folder")
    (folder / "config.json").unlink()
    refused(folder, "it has no config.json")


@pytest.mark.parametrize("size", [0, 50, -500])
def test_cut_weights_are_named_as_such(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    refused(folder, "its weights are damaged or cut short")


def test_text_part_of_a_multimodal_checkpoint_is_said(tmp_path, capsys):
    text = tiny("Qwen3_5TextConfig", dtype=torch.float32, head_dim=8, **QWEN35)
    text.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    whole = transformers.Qwen3_5Config(text_config=config | {"model_type": "qwen3_5_text"})
    (tmp_path / "config.json").write_text(json.dumps(whole.to_dict()))
    model, _ = models.load_model(str(tmp_path))
    assert "only its language model is" in capsys.readouterr().out
    assert not hasattr(model.config, "vision_config")
