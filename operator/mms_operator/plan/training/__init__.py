"""ModelTraining: from a spec and what was observed to pods, objects and a status."""

from mms_operator.plan.training.job import roles, storage_place
from mms_operator.plan.training.planner import plan, references

__all__ = ["plan", "references", "roles", "storage_place"]
