"""How many replicas a service needs. Pure: the cluster and the replay lab call the same functions."""
