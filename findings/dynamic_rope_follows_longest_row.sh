#!/usr/bin/env bash
# Expected: a row's logits do not depend on the other rows of a right-padded batch.
# Happens: with dynamic RoPE the frequencies of the whole batch follow its longest row. 12 tokens
# get other logits once another row exceeds max_position_embeddings; padding is masked, no warning.
# Versions: transformers 5.23.0, torch 2.13.0.
# Matters here: a sampler that batches prompts and a loss in micro-batches see two different models.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cat > "$folder/show.py" <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
SHORT, DECLARED, LONG = 12, 16, 60


@torch.no_grad()
def change_by_company(rope_type, other_length):
    """How far log-probabilities of the short row move when a row of `other_length` joins it."""
    torch.manual_seed(0)
    rope = {"rope_type": rope_type, "rope_theta": 10000.0}
    if rope_type == "dynamic":
        rope["factor"] = 4.0
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=DECLARED, rope_parameters=rope,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(8)  # random weights this large make distributions that differ
    ids = torch.randint(64, (2, other_length))
    lengths = torch.tensor([[SHORT], [other_length]])
    mask = (torch.arange(other_length) < lengths).long()
    alone = model(input_ids=ids[:1, :SHORT]).logits[0].log_softmax(-1)
    beside = model(input_ids=ids, attention_mask=mask).logits[0, :SHORT].log_softmax(-1)
    return (alone - beside).abs().max().item()


kinds, lengths = ("default", "dynamic"), (DECLARED, LONG)
moved = {(kind, n): change_by_company(kind, n) for kind in kinds for n in lengths}
for (kind, n), value in moved.items():
    print(f"{kind:8} rope, {SHORT} tokens beside {n}: log-probabilities move by up to {value:.5f}")
small = max(value for key, value in moved.items() if key != ("dynamic", LONG))
raise SystemExit(not (small < 1e-3 < 0.1 < moved["dynamic", LONG]))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> /dev/null
