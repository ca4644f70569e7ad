"""What the operator saw, as plain values: no client's types, nothing that can change behind one's back."""
