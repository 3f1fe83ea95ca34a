"""A real Kubernetes on one machine, for the demo, the tests and the benchmarks.

Run it as `python -m mms_cluster up|down|status|load|partition|heal|kill|tools|api-only`. See `provider` for which
cluster `up` uses.
"""
