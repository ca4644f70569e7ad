#!/usr/bin/env bash
# pyarrow 26.0.1
#
# write_table's data_page_size is documented as the target for a page's encoded size, 1 MB where nothing is said. What is
# written is compared with it only after each write_batch_size rows, 1024 by default, whatever they hold. Of texts of
# 75 kB a row, as long documents and code are, a page has 77 MB, with data_page_size=1 MB asked for as well as without;
# and a page is read whole: who streams such a file a buffer at a time (pre_buffer=False; with it whole columns are read
# anyway), from an object store say, fetches and holds all of it for one row. A small write_batch_size keeps pages near
# their target.
#
# Output seen, MB that are read of a file of 113 MB for its first row:
#   as written by default: 77
#   data_page_size=1 MB: 77
#   write_batch_size=8: 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pyarrow==26.0.1
cat > "$folder/show.py" <<'PY'
import io
import os

import pyarrow as pa
import pyarrow.parquet as pq

ROWS, HALF = 1500, 37_500
table = pa.table({"text": [os.urandom(HALF).hex() for _ in range(ROWS)]})


class Counted(io.BytesIO):
    """A file that counts what is read of it."""

    read_bytes = 0

    def read(self, size=-1):
        data = super().read(size)
        self.read_bytes += len(data)
        return data


for name, asked in {
    "as written by default": {},
    "data_page_size=1 MB": {"data_page_size": 1 << 20},
    "write_batch_size=8": {"write_batch_size": 8},
}.items():
    written = io.BytesIO()
    pq.write_table(table, written, use_dictionary=False, compression="none", **asked)
    file = Counted(written.getvalue())
    opened = pq.ParquetFile(file, buffer_size=1 << 16, pre_buffer=False)
    (row,) = next(opened.iter_batches(batch_size=1))["text"].to_pylist()
    assert row == table["text"][0].as_py()
    print(f"{name}: {file.read_bytes / 1e6:.0f}")
PY
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
as written by default: 77
data_page_size=1 MB: 77
write_batch_size=8: 1
SEEN
