"""The embedded cluster: etcd, Redis, the five services and agents as child processes."""
