"""What the daemon tells about itself by HTTP (setting Admin).

Only here are h11 and prometheus-client needed, and nothing of it is imported where Admin is not set.
"""
