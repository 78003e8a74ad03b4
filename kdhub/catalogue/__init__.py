"""The catalogue: YAML files of known teachers, students, data sets and recipes, checked and indexed."""
