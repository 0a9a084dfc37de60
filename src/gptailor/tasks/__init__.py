"""What a row means: one module per task, each turning named fields into an `Example`."""
