"""Synthetic tasks: data sets whose examples are generated, and whose targets have right answers."""

from gpt_ablate.data.tasks import copying, dyck, induction, modular, recall

__all__ = ["copying", "dyck", "induction", "modular", "recall"]
