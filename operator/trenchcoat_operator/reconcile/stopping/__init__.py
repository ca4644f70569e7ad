"""What must stop or go: Jobs, pods that are lost, and artifacts."""
