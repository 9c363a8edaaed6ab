"""Training: the loop, the exchange between ranks, validation, checkpoints, metrics.

Nothing here depends on a model family or a fine-tuning method; :mod:`sdtune.models.family` and
:mod:`sdtune.methods.method` are the seams.
"""
