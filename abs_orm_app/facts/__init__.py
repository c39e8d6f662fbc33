"""What is: DATABASES, the server, its sessions, a pooler, a web server, and failures."""
