#!/usr/bin/env bash
# Expected: beta of TRL's generalised Jensen-Shannon loss leads from one KL divergence to the other,
# so that beta = 0.001 is nearly the loss at beta = 0.
# Happens: towards its ends the loss goes to 0, and exactly at 0 and 1 it is a full KL divergence:
# below, 0.001 gives a thousandth of the loss, and of the gradient, at 0.
# Versions: trl 1.16.0, transformers 5.23.0, torch 2.13.0.
# Matters here: a sweep towards an end trains ever less. We offer three divergences by name instead.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet \
    torch==2.13.0 transformers==5.23.0 trl==1.16.0
cat > "$folder/show.py" <<'PYTHON'
import torch
import trl
from trl.experimental.gkd import GKDTrainer

print("trl", trl.__version__)
torch.manual_seed(0)
student, teacher = 2 * torch.randn(1, 64, 50), 2 * torch.randn(1, 64, 50)
found = {}
for beta in (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0):
    logits = student.clone().requires_grad_()
    loss = GKDTrainer.generalized_jsd_loss(logits, teacher, beta=beta)
    loss.backward()
    found[beta] = loss.item(), logits.grad.norm().item()
    print(f"beta {beta:5}: loss {found[beta][0]:9.4f}, norm of the gradient {found[beta][1]:7.4f}")
for near, end in ((0.001, 0.0), (0.999, 1.0)):
    if any(x > y / 100 for x, y in zip(found[near], found[end])):
        raise SystemExit("no jump any more")
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> /dev/null
