"""The HTTP API of a running node: commands of the command line, health, metrics, a status page."""

from stnode.frontends.api.server import ApiServer

__all__ = ["ApiServer"]
