"""What a run needs before anything starts: bytes, memory, time and cost, from the spec and config.json alone.

Formulas stand in one place each: `sizes` and `storage` (bytes), `memory` (GPUs and hosts), `timing` (seconds
by the rates of `rates.yaml`). `fit` says what cannot work and the remedy, `plan` puts all together, `tables`
shows it.
"""
