"""The clinician's page: built from the sources in ``page/`` of the repository, and what it calls.

`medmoe.serving.page.mount.mount_page` puts it into the server's app.
"""
