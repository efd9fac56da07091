#!/usr/bin/env bash
# Expected: tokens read with a cache, one by one or several at once, go on from the state in it.
# Happens: Jamba, Mamba and Falcon Mamba do so for one token. Several at once start from an empty
# state (attention layers still see the cache): other logits, no error. Mamba 2 does it right.
# Versions: transformers 5.23.0 and 5.24.0, torch 2.13.0, without the optional kernels.
# Matters here: a prompt read once, whose completions are then scored with its cache, or a long
# prompt read in pieces, is scored without its beginning. Read such models whole.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/show.py" <<'PYTHON'
import inspect

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
SIZES = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, pad_token_id=0)
KINDS = {
    "jamba": dict(
        intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, mamba_d_state=8,
        attn_layer_period=2, attn_layer_offset=1, num_experts=1, use_mamba_kernels=False,
    ),
    "mamba": dict(state_size=8),
    "falcon_mamba": dict(state_size=8),
    "mamba2": dict(state_size=8, num_heads=4, head_dim=16, n_groups=1, chunk_size=16),
}
PREFIX, END = 12, 16


@torch.no_grad()
def gaps(kind):
    """Largest difference from one pass over the row: the rest one by one, the rest at once."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, **KINDS[kind])
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.2)  # random weights this large make distributions that differ
    ids = torch.randint(3, 64, (1, END))
    whole = model(input_ids=ids).logits[:, PREFIX:]
    names = inspect.signature(model.forward).parameters  # 5.24 calls it cache
    name = next(n for n in ("cache", "cache_params", "past_key_values") if n in names)
    found = []
    for size in (1, END - PREFIX):
        out, rest = model(input_ids=ids[:, :PREFIX], use_cache=True), []
        for start in range(PREFIX, END, size):
            cache = {name: getattr(out, name)}
            out = model(input_ids=ids[:, start : start + size], use_cache=True, **cache)
            rest.append(out.logits)
        found.append((torch.cat(rest, 1) - whole).abs().max().item())
    return found


right = True
for kind in KINDS:
    one, several = gaps(kind)
    print(f"{kind:12}: off by {one:.6f} one by one, by {several:.6f} at once")
    right &= one < 1e-4 and (several < 1e-4 if kind == "mamba2" else several > 0.01)
raise SystemExit(not right)
PYTHON
for version in 5.23.0 5.24.0; do
    "$folder/venv/bin/pip" install --quiet torch==2.13.0 "transformers==$version"
    "$folder/venv/bin/python" "$folder/show.py" 2> /dev/null
done
