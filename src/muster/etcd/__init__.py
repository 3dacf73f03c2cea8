"""Membership, leases and leader election on etcd: our own watch, keep-alive and election."""
