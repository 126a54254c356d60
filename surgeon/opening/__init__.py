"""From a path that a user names to model, task, plan, original and twin; relaxing it. Nothing is certified here."""
