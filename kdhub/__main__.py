from kdhub.cli import main

main()
