"""Where numbers come from and go to."""
