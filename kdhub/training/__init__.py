"""One execution of a recipe: the context a method is given, the training engine, and the run from start to card."""
