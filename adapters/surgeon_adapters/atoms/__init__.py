"""What interatomic potentials share: frames, tasks, rMD17."""
