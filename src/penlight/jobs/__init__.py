"""Orders as text, plans of orders, and running them into a store."""

from penlight.jobs.plan import AtlasOptions, plan_atlas
from penlight.jobs.run import Outcome, run_plan
from penlight.jobs.task import Task

__all__ = ["AtlasOptions", "Outcome", "Task", "plan_atlas", "run_plan"]
