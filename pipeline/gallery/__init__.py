"""The gallery: static pages over the pictures of an archive, for any browser.

From disk or a web server.
"""
