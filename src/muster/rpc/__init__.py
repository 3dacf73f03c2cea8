"""gRPC as Muster uses it: channels, servers, errors, batches, conversion to the domain."""

from muster import grpc_poller as grpc_poller
