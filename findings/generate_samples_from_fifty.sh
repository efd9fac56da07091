#!/usr/bin/env bash
# Expected: GenerationConfig().top_k is None since transformers 5, so generate(do_sample=True)
# samples from the whole vocabulary unless the model's own generation_config says otherwise.
# Happens: generate fills the missing value with 50 when it runs: 50 tokens have a finite score, the
# others cannot come. Versions: transformers 5.23.0, torch 2.13.0. Matters here: a trainer that
# samples so and scores the full softmax trains off-policy without knowing; pass top_k=0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cat > "$folder/show.py" <<'PYTHON'
import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=1000, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
    num_attention_heads=2, pad_token_id=0)).eval()


def tokens_that_can_come(**options):
    out = model.generate(torch.tensor([[1, 2, 3]]), do_sample=True, max_new_tokens=1,
                         output_scores=True, return_dict_in_generate=True, **options)
    return int(out.scores[0].isfinite().sum())


print("GenerationConfig().top_k:", GenerationConfig().top_k,
      " model.generation_config.top_k:", model.generation_config.top_k)
default, explicit = tokens_that_can_come(), tokens_that_can_come(top_k=0)
print(f"of 1000 tokens can be sampled: {default} by default, {explicit} with top_k=0")
raise SystemExit(not (GenerationConfig().top_k is None and default == 50 and explicit == 1000))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> /dev/null
