"""`python -m zkeep`."""

from zkeep.cli.main import main

main()
