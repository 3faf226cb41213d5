"""Runs: what a job is, where it computes, and its way from end to end."""

from .job import EMBEDDED, Job, open_evaluation, open_job
from .pipeline import Session, open_session, prune
from .resources import Resources

__all__ = ["EMBEDDED", "Job", "Resources", "Session", "open_evaluation", "open_job", "open_session", "prune"]
