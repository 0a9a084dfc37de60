"""The loop, the loss, the optimizer and the checkpoints."""
