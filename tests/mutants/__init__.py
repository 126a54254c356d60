"""One-line faults put into a copy of the code on purpose, each with the tests that have to notice it."""
