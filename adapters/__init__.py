"""Adapters to training frameworks, imported as `dsgan_datasets.adapters`; each imports its framework itself."""
