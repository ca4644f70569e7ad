#!/usr/bin/env bash
# transformers 5.24.0, tokenizers 0.23.3
#
# AutoTokenizer.from_pretrained(folder, trust_remote_code=False) ends in an AttributeError where config.json is that of
# a model with code of its own (auto_map) and has RoPE in the words of transformers 4: rope_theta and a rope_scaling of
# type llama3 (yarn and longrope likewise), max_position_embeddings beside them. AutoConfig refuses the code by a
# ValueError, which AutoTokenizer catches to read the file as a plain PreTrainedConfig; that has no rope_parameters of
# its own, so both keys send it to standardize_rope_params, which asks for self.max_position_embeddings before any field
# of the file is set. The tokenizer needs none of it. With type linear the same folder loads.
#
# Output seen:
#   llama3: AttributeError
#   linear: ids [0, 1]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.24.0 tokenizers==0.23.3
cat > "$folder/show.py" <<'PY'
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

folder = Path(sys.argv[1])
tokenizer = Tokenizer(models.WordLevel({"the": 0, "fox": 1, "?": 2}, unk_token="?"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
fields = {
    "model_type": "other-llama",
    "auto_map": {"AutoConfig": "configuration_other.OtherConfig"},
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
cases = {
    "llama3": fields | {"rope_scaling": llama3},
    "linear": fields | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
}
for name, config in cases.items():
    (folder / "config.json").write_text(json.dumps(config))
    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except AttributeError as error:
        print(f"{name}: {type(error).__name__}")
    else:
        print(f"{name}: ids {loaded('the fox')['input_ids']}")
PY
mkdir "$folder/model"
"$folder/venv/bin/python" "$folder/show.py" "$folder/model" 2> "$folder/log" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
llama3: AttributeError
linear: ids [0, 1]
SEEN
