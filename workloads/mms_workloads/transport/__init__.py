"""Point-to-point byte streams between the pods of one job, and the ring all-reduce over them.

Importing it raises ImportError with the remedy where the native library is missing: there is no slower way.
"""

from mms_workloads.transport import native

__all__ = ["native"]
