"""The command ``surgeon``: thin typer commands over the engine, with their screens and tables."""
