"""The command line: parse, call, print. Heavy modules are imported when a command runs, so that help is quick."""

import sys


def main() -> None:
    """Run the command line (:func:`mmcl.cli.app.main`); Ctrl-C while it is still imported ends it in a line, too."""
    try:
        from mmcl.cli.app import main as run
    except KeyboardInterrupt:
        print("\rinterrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    run()
