"""`python -m ehrseq`."""

from ehrseq.cli import main

main()
