"""Bytes between devices. Importing the package registers its transports: a new one is one module and one line here."""

from stnode.net import tcp as tcp
