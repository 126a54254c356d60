"""From a path that a user names to model, task, original and float64 twin; downloading included."""
