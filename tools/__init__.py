"""The `dsgan` command: one file a verb. Imported as `dsgan_datasets.tools`."""
