"""Classes of the features of a crosscoder that are specific to no view (``sae/crosscoder.py``): numbers below 0."""

COMMON, NEITHER, NEVER = -1, -2, -3  # shared by all views; by some; never active
