"""From a path that a user names to model, task, plan, original and float64 twin, downloading included; relaxing it."""
