def kdhub_methods(:
