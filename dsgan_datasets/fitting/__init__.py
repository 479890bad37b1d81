"""Annotated images -> an interpreter, its held-out quality, and the checkpoint with its card."""
