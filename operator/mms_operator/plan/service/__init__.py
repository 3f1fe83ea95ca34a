"""ModelService: from a spec and what was observed to Triton pods and a status."""

from mms_operator.plan.service.planner import plan, references

__all__ = ["plan", "references"]
