"""The command line: one file per group of verbs, listed in `medmoe.cli.main.VERBS`."""
