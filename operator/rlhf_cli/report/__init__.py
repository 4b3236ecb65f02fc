"""report.html: one file that shows what each stage did, and all that reproduces it."""
