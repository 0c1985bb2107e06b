"""The conversation with clamd: its protocol, without I/O, and the connections."""
