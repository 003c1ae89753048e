"""The documentation site, which `make docs` builds in dist/docs.

Pages of reference are written from the code when a build begins. The tutorial runs, and what it
shows is what came out.
"""

import shutil
import sys
from pathlib import Path

from sphinx.application import Sphinx

import medmoe

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
WRITTEN = DOCS / "_generated"
sys.path.insert(0, str(ROOT / "scripts"))

project = "medmoe"
author = "the authors of medmoe"
release = medmoe.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 1800
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_render_markdown_format = "myst"  # with tables
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]
napoleon_use_ivar = True
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"exclude-members": "model_config"}
html_theme = "furo"
html_show_copyright = False
html_title = f"medmoe {release}"
html_theme_options = {
    "announcement": "Research use only, not a medical device.",
    "top_of_page_buttons": [],
}
#: What stands elsewhere in the repository, and where it is on the site.
ELSEWHERE = {
    "results/README.md": "results.md",
    "results/ablations.md": "ablations.md",
    "results/ablations.csv": "ablations.csv",
    "results/measured.csv": "measured.csv",
    "CHANGELOG.md": "changelog.md",
}


def prepare(_: Sphinx) -> None:
    """Write the pages of reference, and bring those that stand elsewhere."""
    import docs_reference

    shutil.rmtree(WRITTEN, ignore_errors=True)
    WRITTEN.mkdir()
    for name, text in docs_reference.pages().items():
        (WRITTEN / name).write_text(text, encoding="utf-8")
    for source, name in ELSEWHERE.items():
        shutil.copy(ROOT / source, WRITTEN / name)


def relink(_: Sphinx, page: str, content: list[str]) -> None:
    """Let links to pages outside this folder lead to their copies."""
    for source, name in ELSEWHERE.items():
        content[0] = content[0].replace(f"../{source}", f"_generated/{name}")
    if page.startswith("_generated/"):
        content[0] = content[0].replace("](../docs/", "](../").replace("](docs/", "](../")


def setup(app: Sphinx) -> None:
    """Hang both into the build."""
    app.connect("builder-inited", prepare)
    app.connect("source-read", relink)
