"""gRPC as Muster uses it: channels, servers, errors, batches, conversion to the domain."""
