"""To the Hugging Face Hub and back: uploads, model cards, whole folders. Single files are fetched by opening.

Nothing is imported here, so that importing surgeon does not load the client library.
"""
