"""The pipelines, and the `unlearn` command."""
