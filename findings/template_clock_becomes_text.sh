#!/usr/bin/env bash
# Expected: chat templates that write today's date (Llama 3.2, SmolLM3, gpt-oss) get it from
# strftime_now, and a keyword of apply_chat_template is a variable of the template:
# strftime_now=function sets the date. Happens: the function becomes its repr, a string, and the
# template fails with "'str' object is not callable". Versions: transformers 5.23.0 and 5.24.0,
# jinja2 3.1.6. Matters here: a run over midnight, or one that is resumed, changes every prompt; the
# date must be set in the template's text.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 jinja2==3.1.6
cat > "$folder/show.py" <<'PYTHON'
import datetime

import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

print("transformers", transformers.__version__)
words = models.WordLevel({"?": 0}, unk_token="?")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
tokenizer.chat_template = "{{ year }} {{ strftime_now('%Y') }} {{ messages[0].content }}"
turns = [{"role": "user", "content": "hello"}]


def fixed(form):
    return datetime.date(1999, 1, 1).strftime(form)


plain = tokenizer.apply_chat_template(turns, tokenize=False, year="1999")
print("a text as a keyword reaches the template:", plain)
try:
    found = tokenizer.apply_chat_template(turns, tokenize=False, year="1999", strftime_now=fixed)
    print("strftime_now as a keyword:", found)
except TypeError as error:
    found = str(error)
    print("strftime_now as a keyword: TypeError:", error)
raise SystemExit(not (plain.startswith("1999 2") and found == "'str' object is not callable"))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> /dev/null
