"""Where the cases put their models."""
