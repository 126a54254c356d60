"""What is fetched from the Hugging Face Hub, and how it is checked.

Nothing is imported here, so that opening a local file does not load the client library.
"""
