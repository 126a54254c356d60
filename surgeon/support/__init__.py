"""About torch and Python alone: nested values, modes, copies, sharding, imports, versions. Nothing about symmetry."""
