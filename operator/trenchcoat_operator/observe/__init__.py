"""Looking: the cluster and the store, followed or read, as the plain values of `model`."""
