"""SevenNet: models, checkpoint files, data and task of sevenn."""
