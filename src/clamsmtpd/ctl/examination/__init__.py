"""What is to be said of what was found on the way of mail, step by step, with what would mend it.

Nothing is asked here: each function takes what a look has found (see :mod:`clamsmtpd.ctl.looks`) and returns steps.
"""
