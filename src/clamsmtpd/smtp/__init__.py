"""The SMTP dialogue without any I/O: octets and decisions in, effects out."""
