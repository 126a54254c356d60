"""Fine-tuning with theta going up and down, fair comparisons of its variants, and whether it can help."""
