#!/usr/bin/env bash
# Expected: a model that keeps no key-value cache refuses the argument.
# Happens: OpenAIGPTLMHeadModel.forward takes any keyword. use_cache=True returns no cache, and with
# past_key_values=DynamicCache() the last token is read as if nothing stood before it: other logits,
# no error, the cache stays empty. Versions: transformers 5.23.0, torch 2.13.0.
# Matters here: a sampler that decodes with a cache draws from a model that never read the prompt.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cat > "$folder/show.py" <<'PYTHON'
import torch
import transformers
from transformers import DynamicCache, OpenAIGPTConfig, OpenAIGPTLMHeadModel

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=2)).eval()
ids, cache = torch.randint(64, (1, 9)), DynamicCache()
with torch.no_grad():
    whole = model(input_ids=ids).logits[0, -1]
    first = model(input_ids=ids[:, :-1], use_cache=True, past_key_values=cache)
    last = model(input_ids=ids[:, -1:], use_cache=True, past_key_values=cache).logits[0, -1]
    bare = model(input_ids=ids[:, -1:]).logits[0, -1]
print("the output of use_cache=True holds:", ", ".join(first.keys()))
print("tokens in the cache after 8 were read with it:", cache.get_seq_length())
print(f"next-token logits with the cache: {(last - whole).abs().max():.4f} off those of the whole "
      f"row, {(last - bare).abs().max():.4f} off those of the last token alone")
unchanged = "past_key_values" not in first and cache.get_seq_length() == 0
raise SystemExit(not (unchanged and torch.equal(last, bare) and (last - whole).abs().max() > 0.01))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> /dev/null
