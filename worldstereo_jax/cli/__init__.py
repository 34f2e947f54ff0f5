"""The `worldstereo` command; one file per subcommand."""
