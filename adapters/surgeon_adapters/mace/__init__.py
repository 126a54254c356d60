"""MACE: models, files, data and task of mace-torch."""
