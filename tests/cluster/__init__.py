"""Failovers of a real cluster: Patroni, etcd and HAProxy in a network namespace of their own."""
