"""A package, so that pytest ends the served fleet with the last test of this folder, not with the whole run."""
