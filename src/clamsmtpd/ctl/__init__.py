"""clamsmtpctl(8): what an administrator does with clamsmtpd, from the command line."""
