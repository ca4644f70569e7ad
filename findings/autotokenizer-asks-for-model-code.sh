#!/usr/bin/env bash
# transformers 5.23.0, tokenizers 0.23.3
#
# AutoTokenizer.from_pretrained on a checkpoint whose config.json has an auto_map for the *model* asks whether to run
# its custom code, although the tokenizer has none: tokenizer.json is there, and tokenizer_config.json names a class of
# transformers itself. It loads the configuration first, by AutoConfig, and that asks; a script waits 15 s for an answer
# (a terminal's user for as long), and then the tokenizer is loaded without the code. From the message ("contains custom
# code which must be executed to correctly load the model") one would think that the tokenizer needed it.
# trust_remote_code=False, which is what the tokenizer gets in the end, does not ask.
#
# Output seen:
#   default: asked True, TokenizersBackend, ids [0, 1]
#   trust_remote_code=False: asked False, TokenizersBackend, ids [0, 1]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3
cat > "$folder/show.py" <<'PY'
import builtins
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

folder = Path(sys.argv[1])
tokenizer = Tokenizer(models.WordLevel({"the": 0, "fox": 1, "?": 2}, unk_token="?"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.save(str(folder / "tokenizer.json"))
settings = {"tokenizer_class": "TokenizersBackend"}
(folder / "tokenizer_config.json").write_text(json.dumps(settings))
auto_map = {"AutoConfig": "configuration_other.OtherConfig"}
(folder / "config.json").write_text(json.dumps({"model_type": "other-llama", "auto_map": auto_map}))

asked = []
builtins.input = lambda *words: asked.append(words) or "n"
for options in ({}, {"trust_remote_code": False}):
    asked.clear()
    loaded = AutoTokenizer.from_pretrained(folder, **options)
    name = ", ".join(f"{key}={value}" for key, value in options.items()) or "default"
    print(f"{name}: asked {bool(asked)}, {type(loaded).__name__}, ids {loaded('the fox')['input_ids']}")
PY
mkdir "$folder/model"
"$folder/venv/bin/python" "$folder/show.py" "$folder/model" 2> "$folder/log" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
default: asked True, TokenizersBackend, ids [0, 1]
trust_remote_code=False: asked False, TokenizersBackend, ids [0, 1]
SEEN
