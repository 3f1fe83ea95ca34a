"""The command line: `mms query` asks a served model, `mms data put` fills the installation's store."""

from mms_operator.cli.app import app

__all__ = ["app"]
