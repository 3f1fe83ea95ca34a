"""Holds the connections of services that have no pods until one is ready. A process of its own, with two replicas.

A service's EndpointSlice leads its clients here while no pod answers. Each service has two ports here, one for HTTP and
one for gRPC. A connection is taken, kept unread until a pod is ready, and then passed through byte by byte, so that it
may be anything: HTTP, gRPC, TLS. Connections that come when pods are ready go past the activator.
"""
