"""Who gets the GPUs that are free: pure rules, from one look at the cluster."""
