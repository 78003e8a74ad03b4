"""Recipes: their layers and model, what their names resolve to, chains of recipes, and the run folder."""
