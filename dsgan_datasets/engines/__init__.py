"""Where work runs when it does not run in this process."""
