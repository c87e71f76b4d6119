"""The command line: parse, call, print. Heavy modules are imported when a command runs, so that help is quick."""

from mmcl.cli.app import main as main
