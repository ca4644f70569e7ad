"""What the operator saw, and what it is to do, as plain values that nobody changes behind one's back."""
