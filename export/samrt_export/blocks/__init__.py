"""Building blocks shared by the model families: plain torch modules, no family names.

Parameter names follow the official checkpoints, so a family's official file loads with ``strict=True``.
"""
