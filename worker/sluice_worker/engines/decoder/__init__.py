"""Text generation on stock transformers models, many sequences in one packed step.

``engine`` is the page to read first: one thread, and a step at a time ``scheduler`` → ``network``
→ ``sampling``. Keys and values live in a ``store``: ``slots`` (CPU) or ``pages`` (accelerator).
"""
