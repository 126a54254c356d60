"""Fine-tuning with theta going up and down, and fair comparisons. The loops of others are in integrations."""
