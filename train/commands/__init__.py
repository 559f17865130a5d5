"""One file for each subcommand of `anyrank`."""
