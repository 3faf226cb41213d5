"""Runs: what a job is, where it computes, and its way from end to end."""

from .footprint import Machine, Workload, count_weights
from .job import EMBEDDED, Job, Sources, open_evaluation, open_job
from .loop import peak_memory
from .plan import Resources, plan_run, plan_table
from .session import Session, load, open_policy, open_session, prune
from .threads import choose_threads

__all__ = [
    "EMBEDDED",
    "Job",
    "Machine",
    "Resources",
    "Session",
    "Sources",
    "Workload",
    "choose_threads",
    "count_weights",
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
