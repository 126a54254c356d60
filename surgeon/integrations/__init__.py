"""The method inside other people's trainers: Lightning and transformers. Our own loop is in training.

Nothing is imported here: take ``surgeon.integrations.lightning`` or ``surgeon.integrations.transformers``, which import
their library.
"""
