"""Will relaxation change anything? The curvature of the loss in the directions that break the symmetry.

docs/method.md, "Will relaxation change anything?", says what is computed and why.
"""
