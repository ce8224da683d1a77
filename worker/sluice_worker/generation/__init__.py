"""Generated text between the routes and the decoder engine: prompts in, choices out.

``intake`` is the page to read first. ``prompts`` makes prompts of a call, ``choice`` makes text of
tokens as they come, ``tools`` finds calls in it, ``grammar`` keeps it within a schema.
"""
