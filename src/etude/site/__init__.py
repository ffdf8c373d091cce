"""The site: papers by day, search, trials, feeds and mail, as pages and as their JSON twins."""
