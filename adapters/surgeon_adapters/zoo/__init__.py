"""Networks of papers, written again here with their data: not adapters of installed libraries."""
