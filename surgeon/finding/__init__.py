"""Where a branch can be attached, and how the features there transform. Nothing here changes a model."""
