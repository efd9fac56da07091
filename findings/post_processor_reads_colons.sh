#!/usr/bin/env bash
# Expected: tokenizers' TemplateProcessing puts any special token in front of a text, by its name.
# Happens: a colon in a name is read as the mark of a type id, in the string form and in the list
# form alike: "<seed:bos>", the BOS of Seed-OSS, is refused with "Cannot build Piece from string";
# the same token with "_" for ":" works. Versions: tokenizers 0.23.3. Matters here: a BOS must be
# written once. Where it cannot stand in the post-processor, the chat template writes it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
cat > "$folder/show.py" <<'PYTHON'
import tokenizers
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing

print("tokenizers", tokenizers.__version__)
found = {}
for token in ("<seed_bos>", "<seed:bos>"):
    for form in (f"{token} $A", [token, "$A"]):
        tokenizer = Tokenizer(models.WordLevel({token: 0, "hello": 1}, unk_token="hello"))
        tokenizer.add_special_tokens([token])
        try:
            tokenizer.post_processor = TemplateProcessing(single=form, special_tokens=[(token, 0)])
            result = str(tokenizer.encode("hello").ids)
        except ValueError as error:
            result = f"ValueError: {error}"
        found.setdefault(token, []).append(result)
        print(f"{token} as {type(form).__name__}: {result}")
right = found["<seed_bos>"] == ["[0, 1]", "[0, 1]"]
raise SystemExit(not (right and all("Cannot build Piece" in x for x in found["<seed:bos>"])))
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
