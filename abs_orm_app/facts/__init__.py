"""Reads facts: about DATABASES, the server, its sessions, a pooler, and failures."""
