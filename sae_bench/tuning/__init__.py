"""Equal tuning: the same search for every architecture, on text that no board has, and the recipe that it finds."""
