"""The Hugging Face Hub: ``hf://`` paths, downloads that are checked, uploads, model cards.

Nothing is imported here, so that opening a local file does not load the client library.
"""
