"""`python -m promptstore` is the command line."""

from promptstore.cli import main

main()
