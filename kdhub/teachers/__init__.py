"""Teachers that need no class of their own: saved students, and models behind an API."""
