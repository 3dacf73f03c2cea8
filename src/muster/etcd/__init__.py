"""Membership, leases and leader election on etcd: our own watch, keep-alive and election."""

from muster import grpc_poller as grpc_poller
