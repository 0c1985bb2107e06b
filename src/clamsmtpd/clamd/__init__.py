"""The conversation with clamd: its protocol, without I/O, the connections, and the choice among several."""
