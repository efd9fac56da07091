"""What has to be known about a model: output matrix, limits. Its chat template: templates.py.

Everything that differs between model families stands here, so that mopd.py can speak of the method
alone."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from runtime.templates import (  # noqa: F401 (they are looked for here, too)
    chat_ids,
    completion_text,
    layouts_of,
    plain_text,
    stop_ids,
    student_ids,
)


def head(model) -> torch.Tensor:
    """The output matrix (V, D): logits are final hidden states times its transpose."""
    return model.get_output_embeddings().weight


def load_model(name: str):
    """(model in float32 and eval mode, tokenizer) from the Hub or a folder.

    Raises ValueError for what cannot be loaded and for heads that the loss cannot differentiate,
    see `check_model`.
    """
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise ValueError(f"no such model folder: {name}")
    try:
        AutoConfig.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # damaged files raise whatever their readers raise
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"cannot load a model from {name}, which must be a Hub id or a model folder: {reason}"
        ) from None
    check_model(model, name)
    return model.eval(), tokenizer


def check_model(model, name: str) -> None:
    """Refuse a model whose logits are not (final hidden states) x (output matrix)^T.

    The loss differentiates that product in closed form. Scaled (Granite, Cohere), capped (Gemma 2)
    and biased (Phi) heads, and models without one matrix, raise ValueError. The numeric comparison
    cannot see a cap while logits are small, nor a bias that is still zero, so the configuration is
    checked as well.
    """
    output = model.get_output_embeddings()
    if not isinstance(getattr(output, "weight", None), torch.Tensor) or output.weight.dim() != 2:
        raise ValueError(
            f"{name}: no output matrix that the loss could use ({type(output).__name__})"
        )
    ids = torch.arange(8, device=output.weight.device)[None] % len(output.weight)
    with torch.no_grad():
        mode, _ = model.training, model.eval()
        logits = model(input_ids=ids, use_cache=False).logits.float()
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        plain = (hidden @ output.weight.T).float()
        model.train(mode)
    capped = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
    biased = getattr(output, "bias", None) is not None
    differs = (
        plain.shape != logits.shape or (plain - logits).abs().max() > 1e-3 * logits.abs().max()
    )
    if capped or biased or differs:
        raise ValueError(
            f"{name}: its logits are not hidden states times the output matrix (scaled, capped or "
            "biased head); use a model with a plain head, such as Qwen, Llama or SmolLM"
        )


def max_length(model) -> int:
    """The longest sequence, in tokens, that the model has positions for."""
    return (
        getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        or 2**31
    )


def product_dtype(hidden: torch.Tensor) -> torch.Tensor:
    """Autocast leaves the final norm's output in float32: cast back, or the head runs in it."""
    kind = hidden.device.type
    enabled = torch.is_autocast_enabled(kind)
    return hidden.to(torch.get_autocast_dtype(kind)) if enabled else hidden


def recompute_activations(model) -> None:
    """Turn on gradient checkpointing. ValueError for a model with dropout.

    transformers recomputes in train mode only, where dropout is active: the trainer would then
    score the tokens under other probabilities than the sampler.
    """
    for name, value in model.config.to_dict().items():
        is_dropout = "dropout" in name or name.endswith("pdrop")
        if is_dropout and isinstance(value, float) and value > 0:
            raise ValueError(
                f"--gradient-checkpointing would train under dropout: set {name} to 0 in the config"
            )
    # activation_checkpointing_enable is the newer name
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    # this hook serves frozen embeddings only, and hooks slow the rollouts down
    model.disable_input_require_grads()
