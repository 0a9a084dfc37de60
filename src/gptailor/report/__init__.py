"""What people read: progress, plots, the page, the model card."""
