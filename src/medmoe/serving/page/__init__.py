"""The clinician's page: HTML and a script of our own, and the routes that they call.

`medmoe.serving.page.mount.mount_page` puts it into the server's app.
"""
