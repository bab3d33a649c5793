"""Sweeps: what to try (:mod:`.spec`, :mod:`.space`), what it will cost (:mod:`.plan`).

Importing this package imports neither Ray nor Optuna.
"""
