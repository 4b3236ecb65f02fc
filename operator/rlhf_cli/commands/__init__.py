"""One file a command, each with `execute(args) -> exit code`."""
