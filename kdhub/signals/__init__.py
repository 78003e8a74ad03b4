"""Teacher outputs: computed once, stored under the content of their rows, and read back."""
