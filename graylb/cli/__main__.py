"""`python -m graylb.cli`."""

from graylb.cli import main

main()
