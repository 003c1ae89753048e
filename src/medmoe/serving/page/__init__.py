"""The clinician's page: Gradio in the server's process, with none of its ways to keep a file."""

from medmoe.serving.page.mount import mount_page

__all__ = ["mount_page"]
