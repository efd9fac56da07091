#!/usr/bin/env bash
# Expected: with its attention mask, a left-padded prompt is continued as it is alone; one pass over
# the row agrees with that. Happens: MiniMax, whose first layer is linear attention, decodes another
# text: asked for its length, the cache answers 0. From the second new token on the logits differ
# (below: by 2.8). Versions: transformers 5.23.0 and 5.24.0, torch 2.13.0. Matters here: prompts of
# unequal length in one batch are sampled from another model than is scored.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/show.py" <<'PYTHON'
import torch
import transformers
from transformers import MiniMaxConfig, MiniMaxForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
PADDING, PROMPT = 5, 7


@torch.no_grad()
def compare(layers):
    """Largest difference of padded from alone: in one pass, at the first token, at later ones."""
    torch.manual_seed(0)
    config = MiniMaxConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=64, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, block_size=4, num_local_experts=2,
        layer_types=layers, sliding_window=None, pad_token_id=0,
    )
    model = MiniMaxForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.2)  # random weights this large make distributions that differ
    ids = torch.randint(3, 64, (1, PROMPT + 5))
    padded = torch.nn.functional.pad(ids, (PADDING, 0))
    mask = (torch.arange(padded.shape[1]) >= PADDING).long()[None]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    alone = model(input_ids=ids).logits
    whole = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits
    start, cache, decoded = 0, None, []
    for end in range(PADDING + PROMPT, padded.shape[1] + 1):
        out = model(
            input_ids=padded[:, start:end], attention_mask=mask[:, :end], use_cache=True,
            position_ids=positions[:, start:end], past_key_values=cache,
        )
        start, cache = end, out.past_key_values
        decoded.append(out.logits[:, -1])
    length = cache.get_seq_length()
    gap = (torch.stack(decoded, 1) - alone[:, PROMPT - 1 :]).abs().amax((0, 2))
    texts = []
    for row, its_mask in ((ids, torch.ones_like(ids)), (padded, mask)):
        text = model.generate(
            row, attention_mask=its_mask, max_new_tokens=8, min_new_tokens=8, do_sample=False
        )
        texts.append(text[0, row.shape[1] :].tolist())
    same, one_pass = texts[0] == texts[1], (whole[:, PADDING:] - alone).abs().max()
    print(" + ".join(layers))
    print(f"  padded minus alone, one pass {one_pass:.6f}, first token {gap[0]:.6f}, later "
          f"{gap[1:].max():.6f}; generate writes the same: {same}")
    print(f"  after {end} tokens the cache says that its length is {length}")
    return gap[0] < 1e-4, gap[1:].max() < 1e-4, same


mixed = compare(["linear_attention", "full_attention"])
pure = compare(["full_attention", "full_attention"])
raise SystemExit(not (mixed == (True, False, False) and pure == (True, True, True)))
PYTHON
for version in 5.23.0 5.24.0; do
    "$folder/venv/bin/pip" install --quiet torch==2.13.0 "transformers==$version"
    "$folder/venv/bin/python" "$folder/show.py" 2> /dev/null
done
