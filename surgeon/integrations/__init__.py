"""The method inside other people's trainers: Lightning and transformers.

Nothing is imported here: take ``surgeon.integrations.lightning`` or ``surgeon.integrations.transformers``, which import
their library.
"""
