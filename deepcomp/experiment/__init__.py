"""Run folders, recipes, the command line of the scripts, and what they print and draw."""
