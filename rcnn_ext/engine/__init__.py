"""Training, evaluation and detection.

Import what is needed from its module: ``train`` needs Lightning and ``metrics`` pycocotools, while
``detect`` and ``checkpoint`` run on the base installation.
"""
