"""Checkpoints as data: what one holds (`state`), its file (`file_format`, `plain`), and where it lies (`store`)."""
