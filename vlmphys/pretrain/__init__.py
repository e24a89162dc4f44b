"""How the tiny base learns to see motion before anyone asks it for a verdict (`launch/build_tiny_base.py`).

`pool` simulates clips from seeds that no benchmark uses, `tower` teaches the vision tower to read single frames, `questions` turns true
trajectories into questions about motion, `language` trains projector and language model on them.
"""
