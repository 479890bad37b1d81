"""Where samples come from, who gets which of them, and the datasets that a DataLoader understands."""
