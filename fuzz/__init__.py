"""Fuzzing: what reads octets of strangers is fed whatever makes it do something new, and held against what must hold.

Run by ``python -m fuzz``; :mod:`fuzz.targets` says what there is and how to write one more.
"""
