"""Label kinds: what a label is, how it is stored, counted, mirrored and drawn."""
