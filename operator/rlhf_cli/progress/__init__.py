"""What a person sees of a run: live in a terminal, lines in a log, a table at the end."""
