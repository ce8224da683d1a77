"""The custom metrics API (``custom.metrics.k8s.io``), served from memory by every replica.

``registration`` sees to it that the API server sends HPAs here; ``server`` answers, with the
documents of ``documents`` and the values of ``values``; ``front_proxy`` knows who may ask.
"""
