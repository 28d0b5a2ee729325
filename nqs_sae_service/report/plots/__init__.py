"""The figures of a report: one module per question, each a function from a dataset to a matplotlib ``Figure``."""
