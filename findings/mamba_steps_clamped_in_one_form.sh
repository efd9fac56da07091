#!/usr/bin/env bash
# Expected: decoding token by token with the cache gives the log-probabilities of one pass over the
# whole row. Happens: Zamba 2 clamps its state-space time steps from below (time_step_min) in the
# pass over a row, not where one token is read. Where a head's learnt step is shorter than that,
# both forms part (below: 0.06 nats); above it they agree. Versions: transformers 5.23.0, torch
# 2.13.0, without the optional kernels. Matters here: rollouts are sampled token by token and scored
# in one pass, so the ratio of both is not 1 on policy.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cat > "$folder/show.py" <<'PYTHON'
import torch
import transformers
from transformers import Zamba2Config, Zamba2ForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
config = Zamba2Config(
    vocab_size=96, hidden_size=32, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=4,
    layers_block_type=["mamba", "hybrid", "mamba"], intermediate_size=64,
    mamba_d_state=8, mamba_headdim=8,
    n_mamba_heads=8, mamba_ngroups=1, chunk_size=16, num_mem_blocks=1, time_step_min=0.001,
)
model = Zamba2ForCausalLM(config).eval()
for parameter in model.parameters():
    if parameter.ndim > 1:
        parameter.data.mul_(12)  # random weights this large make distributions that differ
ids = torch.randint(96, (1, 32))


@torch.no_grad()
def gap(bias):
    """Largest difference in log-probability, in nats, with this bias of every head's time step."""
    for name, parameter in model.named_parameters():
        if name.endswith("dt_bias"):
            parameter.fill_(bias)
        if name.endswith("in_proj.weight"):
            parameter[-config.n_mamba_heads:] = 0  # the step is softplus(bias) alone
    whole = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    out = model(input_ids=ids[:, :8], use_cache=True)
    pieces = [out.logits]
    for t in range(8, ids.shape[1]):
        out = model(input_ids=ids[:, t:t + 1], past_key_values=out.past_key_values, use_cache=True)
        pieces.append(out.logits)
    return (torch.cat(pieces, dim=1).log_softmax(-1) - whole).abs().max().item()


above, below = gap(-4.0), gap(-9.0)
print("time step 0.018, above time_step_min 0.001: one pass and token by token differ by "
      f"{above:.1e} nats")
print(f"time step 0.00012, below it: they differ by {below:.1e} nats")
raise SystemExit(not (above < 1e-3 < 1e-2 < below))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> /dev/null
