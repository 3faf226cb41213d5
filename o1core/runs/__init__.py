"""Runs: what a job is, where it computes, and its way from end to end."""

from .footprint import Machine
from .job import EMBEDDED, Job, open_evaluation, open_job
from .loop import is_intact, peak_memory
from .session import Session, open_policy, open_session, prune
from .plan import plan_run, plan_table
from .resources import Resources

__all__ = [
    "EMBEDDED",
    "Job",
    "Machine",
    "Resources",
    "Session",
    "is_intact",
    "open_evaluation",
    "open_job",
    "open_policy",
    "open_session",
    "peak_memory",
    "plan_run",
    "plan_table",
    "prune",
]
