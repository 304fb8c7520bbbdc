"""Gallery: static pages over the pictures of an archive, on disk or behind a web server."""
