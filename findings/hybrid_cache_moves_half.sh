#!/usr/bin/env bash
# Expected: cache.batch_select_indices(rows) makes row i of a cache continue as row rows[i] did, as
# cache.reorder_cache does. Happens: on layers that hold attention and a state-space state
# (Falcon-H1) it moves keys and values only. Row 0 then attends to row 1's prompt and keeps row 0's
# recurrent state: other logits, no error, no warning. Versions: transformers 5.23.0, torch 2.13.0.
# Matters here: K rollouts of a prompt start from copies of one cache, and finished rows leave it.
# Use reorder_cache.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cat > "$folder/show.py" <<'PYTHON'
import torch
import transformers
from transformers import AutoModelForCausalLM, FalconH1Config

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
config = FalconH1Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8,
    mamba_n_groups=1, mamba_d_state=16, mamba_d_conv=4, mamba_chunk_size=8,
)
model = AutoModelForCausalLM.from_config(config).eval()
for parameter in model.parameters():
    if parameter.ndim > 1:
        parameter.data.mul_(8)  # random weights this large make distributions that differ
prompts = torch.tensor([[1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4]])
next_token = torch.tensor([[3], [3]])


@torch.no_grad()
def logits_of_row(row, select=None):
    cache = model(input_ids=prompts, use_cache=True).past_key_values
    if select:
        getattr(cache, select)(torch.tensor([1, 1]))
    return model(input_ids=next_token, past_key_values=cache, use_cache=True).logits[row, -1]


wanted = logits_of_row(1)
gap = {name: (logits_of_row(0, name) - wanted).abs().max().item()
       for name in ("reorder_cache", "batch_select_indices")}
for name, value in gap.items():
    print(f"row 0 after {name}([1, 1]): differs from row 1 by up to {value:.4f} "
          f"(logits up to {wanted.abs().max():.1f})")
raise SystemExit(not (gap["reorder_cache"] < 1e-4 < 0.01 < gap["batch_select_indices"]))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> /dev/null
