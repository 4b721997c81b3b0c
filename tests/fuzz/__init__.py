"""Damaged files of every kind that the command line takes, made from small whole ones."""
