"""nano: a SAM 2.1 small enough to ship, trained here on pictures drawn here.

``scenes`` draws the pictures, ``train`` makes ``nano.safetensors`` from them, ``evaluate`` measures it on held-out ones.
``clips`` sets them in motion, ``train_video`` teaches the same model to remember, ``evaluate_video`` measures it (J & F).
"""
