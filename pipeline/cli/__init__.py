"""The command line: commands, help, exit codes, sweeps."""
