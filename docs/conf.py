"""How Sphinx makes the documentation: HTML with ``make docs``, and the manual pages in man/."""

from __future__ import annotations

from clamsmtpd import __version__

project = "clamsmtpd"
release = version = __version__
extensions = ["myst_parser"]
exclude_patterns = ["howto/files"]
# Every link is to be one that the build can check.
nitpicky = True
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
# Two commands of one name are told apart by their sections, "clamd(8)"; quotes and dashes are those that were typed.
smartquotes = False

html_theme = "furo"
html_title = "clamsmtpd"
html_copy_source = False
html_show_copyright = False

# The date on the manual pages: that of their last change which matters. Were it that of the build, each day would
# change them.
today = "November 25, 2026"

_MANUAL = "reference/manual"
man_pages = [
    (f"{_MANUAL}/clamsmtpd.8", "clamsmtpd", "SMTP filter that checks mail for viruses with ClamAV", "", "8"),
    (f"{_MANUAL}/clamsmtpd.conf.5", "clamsmtpd.conf", "settings of clamsmtpd", "", "5"),
    (f"{_MANUAL}/clamsmtpctl.8", "clamsmtpctl", "what an administrator does with clamsmtpd", "", "8"),
]
