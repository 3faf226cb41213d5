"""Runs: what a job is, where it computes, and its way from end to end."""

from .footprint import Machine, Workload
from .job import EMBEDDED, Job, open_evaluation, open_job
from .loop import peak_memory
from .plan import Resources, plan_run, plan_table
from .session import Session, load, open_policy, open_session, prune

__all__ = [
    "EMBEDDED",
    "Job",
    "Machine",
    "Resources",
    "Session",
    "Workload",
    "load",
    "open_evaluation",
    "open_job",
    "open_policy",
    "open_session",
    "peak_memory",
    "plan_run",
    "plan_table",
    "prune",
]
