"""From the bytes of a picture to upright pixels and technical facts, in a limited child process.

`medmoe.data.images` is the front door; nothing else calls this package, except a server, which
turns a data URL into bytes first.
"""
