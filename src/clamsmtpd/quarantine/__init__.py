"""Quarantine: what is known of the files in it, how they leave it, and when they have been there long enough."""
