"""Trainings that run a program of somebody else's: no master of ours, so what pods show is all there is to go by.

All pods make one world: it runs whole, and when a pod is lost all are made anew, as the next attempt.
"""
