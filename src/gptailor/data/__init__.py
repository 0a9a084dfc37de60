"""From files to batches: read, clean, split, tokenize, batch."""
