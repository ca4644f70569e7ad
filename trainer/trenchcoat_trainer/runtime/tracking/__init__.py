"""Trackers: what a stage reports goes on to TensorBoard's files, MLflow and trackio, by their own clients."""
