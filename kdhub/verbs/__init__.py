"""What the command line and `import kdhub` share: one module a verb."""
