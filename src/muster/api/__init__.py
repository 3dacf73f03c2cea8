"""Generated from proto/; `make proto` writes it anew."""

from muster import grpc_poller as grpc_poller
