"""To the Hugging Face Hub and back: uploads, model cards, whole folders, loading by name.

Nothing is imported here, so that importing surgeon does not load the client library.
"""
