"""From the environment to one entry of DATABASES."""
