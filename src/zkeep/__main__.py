"""`python -m zkeep`, and the command `zkeep`."""

import signal


def main() -> None:
    """Run and exit. Ctrl-C while modules are loaded is no traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from zkeep.cli.main import main

    main()


if __name__ == "__main__":
    main()
