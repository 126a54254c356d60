"""NequIP: models, packaged files, data and task."""
