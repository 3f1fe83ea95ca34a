"""The replay lab: what scaling would have done on a trace, ours beside others', by `mms replay`."""
