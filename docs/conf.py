"""The pages as a web site: sphinx-build -W -c docs . site

The repository's root is the source, so that a page links to a result or a source file as it does in the repository.
"""

project, author = "o1core", "The o1core authors"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "bench/results/*.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
html_theme = "furo"
html_title = "o1core"
html_copy_source = False
myst_heading_anchors = 3  # a link to page.md#a-heading finds it
suppress_warnings = ["misc.highlighting_failure"]
