"""Trackers: what a stage reports goes on to TensorBoard's files and MLflow, by their own clients."""
