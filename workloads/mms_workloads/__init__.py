"""What runs inside the pods: the parameter-sync service, the worker, and the agent beside Triton."""
