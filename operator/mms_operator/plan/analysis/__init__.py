"""Whether a canary is as good as the stable version. Pure: samples and what was learnt in, a verdict out.

`sequential.decide` is the whole of it: it may be asked after every interval, and what it says with 95 % confidence is
then wrong in at most 5 % of rollouts, not of looks.
"""
