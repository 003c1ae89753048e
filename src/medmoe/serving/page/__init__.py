"""The clinician's page: Gradio in the server's process, with none of its ways to keep a file.

`medmoe.serving.page.mount.mount_page` puts it into the server's app.
"""
