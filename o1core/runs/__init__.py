"""Runs: what a job is, where it computes, and its way from end to end."""

from .footprint import Machine
from .job import EMBEDDED, Job, open_evaluation, open_job
from .pipeline import Session, open_session, prune
from .plan import plan_run, plan_table
from .resources import Resources

__all__ = [
    "EMBEDDED",
    "Job",
    "Machine",
    "Resources",
    "Session",
    "open_evaluation",
    "open_job",
    "open_session",
    "plan_run",
    "plan_table",
    "prune",
]
